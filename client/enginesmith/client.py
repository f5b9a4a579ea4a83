"""Client: one object for one service, with everything that can be asked of it."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np

from .errors import DeploymentFailed, TimedOut
from .jobs import Jobs
from .models import Datasets, Models
from .records import Job, Prediction, Record, Version, parse
from .replaying import replay
from .transport import Transport
from .uploads import write_npz
from .webhooks import Webhooks

DEFAULT_URL = "http://127.0.0.1:8000"
Records = list[Record]


class Client:
    """`Client("http://127.0.0.1:8000", key)`; without arguments ENGINESMITH_URL and ENGINESMITH_API_KEY decide.

    client.models, client.datasets, client.jobs, client.deployments and client.webhooks hold the rest. Every call may
    raise ApiError and Unreachable.
    """

    def __init__(
        self, url: str | None = None, key: str | None = None, *, retries: int = 4, transport: Transport | None = None
    ) -> None:
        self.transport = transport or Transport(
            url or os.environ.get("ENGINESMITH_URL") or DEFAULT_URL,
            key or os.environ.get("ENGINESMITH_API_KEY") or None,
            retries=retries,
        )
        self.url = self.transport.url
        self.jobs = Jobs(self.transport)
        self.models = Models(self.transport, self.jobs)
        self.datasets = Datasets(self.transport)
        self.deployments = Deployments(self.transport)
        self.webhooks = Webhooks(self.transport)
        self.push = self.models.push
        self.wait = self.jobs.wait
        self.kinds = self.jobs.kinds
        self.deploy = self.deployments.deploy
        self.rollback = self.deployments.rollback

    def close(self) -> None:
        self.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def usage(self) -> Record:
        """What takes how much of the store, and how much is free."""
        return cast(Record, self.transport.json("GET", "/v1/usage"))

    def health(self) -> Record:
        """Whether the service lives, and whether it is ready: every deployment loaded, the store answering."""
        found = Record()
        for part in ("live", "ready"):
            response = self.transport.request("GET", f"/healthz/{part}", accept=(503,))
            try:
                body = parse(response.content)
            except ValueError:
                body = None
            found |= body if isinstance(body, dict) else {}
            found[part] = response.is_success
        return found

    def optimize(
        self, model: str, dataset: str, *, wait: bool = True, timeout: float | None = None, **fields: Any
    ) -> Job:
        """The fastest version of a model that is proven to keep its accuracy: `job.result.model`, with its verdict.

        fields: targets, objective, max_accuracy_drop, trials, passes … With wait it raises JobFailed and TimedOut.
        """
        return self.jobs.submit("optimize", wait=wait, timeout=timeout, model=model, dataset=dataset, **fields)

    def search(
        self,
        model: str | None,
        dataset: str,
        space: Mapping[str, Any],
        *,
        wait: bool = True,
        timeout: float | None = None,
        **fields: Any,
    ) -> Job:
        """Hyper-parameters of a chain of jobs (`chain`), or of a scikit-learn estimator (`estimator`).

        space: names → choices, or {"low", "high", "log"?, "step"?}. fields: sampler, trials, objectives, pruner …
        """
        return self.jobs.submit(
            "search", wait=wait, timeout=timeout, model=model, dataset=dataset, space=dict(space), **fields
        )

    def replay(
        self, ref: str, on: str, *, dataset: str | None = None, follow: Callable[[Job], Job] | None = None
    ) -> Version:
        """Does what made the version `ref` again, to `on`: another checkpoint of the same architecture, `name@1`, or of
        a bare name the newest upload that fits.

        Submits the chain one job after the other and waits for each (with `follow`, where it is given). Returns the
        last version. Raises OtherNetwork before anything is submitted, and JobFailed.
        """
        return replay(self.models, self.jobs, ref, on, dataset, follow or self.jobs.wait)

    def predict(
        self,
        deployment: str,
        inputs: Any,
        *,
        outputs: list[str] | None = None,
        top_k: int | None = None,
        timeout_ms: float | None = None,
        as_json: bool | None = None,
    ) -> Prediction:
        """Asks a deployment.

        inputs: an array, or a dict of arrays by input name; nested lists; or encoded images: bytes, a Path, several.
        Arrays travel as binary and come back as arrays; lists, images, and what asks for top_k are answered as JSON.
        """
        headers = {} if timeout_ms is None else {"X-Timeout-Ms": f"{timeout_ms:.12g}"}
        binary = _is_arrays(inputs) and not as_json
        query: dict[str, Any] = {}
        body: dict[str, Any]
        if _is_images(inputs):
            body = _images(inputs, headers)
        elif binary:
            body = {"content": _pack(inputs, headers)}
        else:
            asked = {"inputs": _plain(inputs), "outputs": outputs, "top_k": top_k}
            body = {"json": {k: v for k, v in asked.items() if v is not None}}
        if "json" not in body:
            query = {k: v for k, v in {"outputs": ",".join(outputs or ()), "top_k": top_k}.items() if v}
        if binary and top_k is None:
            headers["Accept"] = "application/x-npz"
        path = f"/predict/{deployment}"
        response = self.transport.request(
            "POST", path, headers=headers, params=query, repeatable=True, accept=(406,), **body
        )
        if response.status_code == 406:
            # Outputs of text have no binary form.
            headers["Accept"] = "application/json"
            response = self.transport.request("POST", path, headers=headers, params=query, repeatable=True, **body)
        if response.headers.get("Content-Type", "").startswith("application/x-np"):
            found = _unpack(response.content)
            if outputs:
                found = {name: found[name] for name in outputs if name in found}
            return Prediction(model=response.headers.get("Enginesmith-Model"), outputs=found)
        answer = Prediction(parse(response.content))
        if binary:
            answer["outputs"] = {name: np.asarray(value) for name, value in answer["outputs"].items()}
        return answer


class Deployments:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def deploy(
        self, name: str, model: str | Version | Job, *, wait: bool = True, timeout: float = 300.0, **options: Any
    ) -> Record:
        """Puts a version behind a name. options: any setting of PUT: instances, max_batch, canary …

        wait: until every replica has it. Raises DeploymentFailed, TimedOut.
        """
        body = {"model": _ref(model)} | {k: v for k, v in options.items() if v is not None}
        put = cast(Record, self._transport.json("PUT", f"/v1/deployments/{name}", json=body))
        return self.settled(put, timeout) if wait else put

    def rollback(self, name: str, *, wait: bool = True, timeout: float = 300.0) -> Record:
        """Back to the version before."""
        found = cast(Record, self._transport.json("POST", f"/v1/deployments/{name}/rollback"))
        return self.settled(found, timeout) if wait else found

    def settled(self, wanted: Record, timeout: float = 300.0) -> Record:
        """Waits until every replica has what was put. Raises DeploymentFailed, TimedOut."""
        until, found = time.monotonic() + timeout, wanted
        while found["status"] not in {"ready", "failed", "asleep"}:
            if time.monotonic() >= until:
                why = f": {found['building']}" if found.get("building") else ""
                raise TimedOut(f"deployment {wanted['name']} is still {found['status']} after {timeout:g} s{why}")
            time.sleep(0.1)
            found = self.get(wanted["name"])
        if found["status"] == "failed":
            raise DeploymentFailed(found)
        return found

    def list(self) -> Records:
        return list(self._transport.pages("/v1/deployments"))

    def get(self, name: str) -> Record:
        return cast(Record, self._transport.json("GET", f"/v1/deployments/{name}"))

    def delete(self, name: str) -> None:
        self._transport.request("DELETE", f"/v1/deployments/{name}")


def _ref(model: str | Version | Job) -> str:
    """The reference of a version, or of what a job made."""
    if isinstance(model, str):
        return model
    if isinstance(model, Job):
        made = (model.result or Record()).get("model")
        if made is None:
            raise ValueError(f"job {model.id} made no version of a model")
        return str(made)
    return str(model["ref"])


def _is_array(value: Any) -> bool:
    # Tensors of torch count: they have __array__ and need no torch here.
    return hasattr(value, "__array__")


def _is_arrays(inputs: Any) -> bool:
    """Whether these can travel as binary: arrays, and of numbers."""
    values = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
    return bool(values) and all(_is_array(value) and np.asarray(value).dtype.kind in "biuf" for value in values)


def _is_images(inputs: Any) -> bool:
    if isinstance(inputs, bytes | os.PathLike):
        return True
    return isinstance(inputs, list) and bool(inputs) and all(isinstance(i, bytes | os.PathLike) for i in inputs)


def _pack(inputs: Any, headers: dict[str, str]) -> bytes:
    """One array as .npy, several as .npz."""
    buffer = io.BytesIO()
    if isinstance(inputs, Mapping):
        headers["Content-Type"] = "application/x-npz"
        write_npz(buffer, {name: np.asarray(value) for name, value in inputs.items()})
    else:
        headers["Content-Type"] = "application/x-npy"
        np.save(buffer, np.asarray(inputs), allow_pickle=False)
    return buffer.getvalue()


def _unpack(content: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        names: list[str] = list(found.files)
        return {name: found[name] for name in names}


def _plain(inputs: Any) -> Any:
    """Arrays as lists, also inside a dict."""
    if isinstance(inputs, Mapping):
        return {name: _plain(value) for name, value in inputs.items()}
    return np.asarray(inputs).tolist() if _is_array(inputs) else inputs


def _images(inputs: Any, headers: dict[str, str]) -> dict[str, Any]:
    """One image as it is, several as multipart."""
    blobs = [
        i if isinstance(i, bytes) else Path(i).read_bytes() for i in (inputs if isinstance(inputs, list) else [inputs])
    ]
    kinds = ["image/png" if blob.startswith(b"\x89PNG") else "image/jpeg" for blob in blobs]
    if not isinstance(inputs, list):
        headers["Content-Type"] = kinds[0]
        return {"content": blobs[0]}
    return {"files": [("file", (f"{i}", blob, kind)) for i, (blob, kind) in enumerate(zip(blobs, kinds, strict=True))]}
