"""Models and data sets: push, look at, download, delete."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import httpx

from .errors import EnginesmithError, Unreachable
from .jobs import Jobs
from .records import Job, Record, Version, parse
from .transport import Transport, pause
from .uploads import kind_of, opened, packed

ARCHITECTURE = "architecture.json"
Names = list[Record]


def split_ref(ref: str) -> tuple[str, int | None]:
    """`name@3` → ("name", 3); `name` → ("name", None)."""
    name, _, number = ref.partition("@")
    if number and not number.isdigit():
        raise ValueError(f"{ref!r} is no reference: say a name, or name@number")
    return name, int(number) if number else None


class Models:
    def __init__(self, transport: Transport, jobs: Jobs) -> None:
        self._transport = transport
        self._jobs = jobs

    def push(
        self,
        model: Any,
        name: str,
        *,
        example: Any = None,
        architecture: Mapping[str, Any] | None = None,
        signature: Mapping[str, Any] | None = None,
        task: str | None = None,
        labels: Iterable[str] | None = None,
        preprocess: Mapping[str, Any] | None = None,
        wait: bool = True,
        timeout: float | None = None,
        filename: str | None = None,
    ) -> Any:
        """Uploads a model, streaming. Returns its Version; with wait=False the Job that imports it.

        model: a file (path, bytes or open), what `export` made, or a torch.nn.Module together with an example input,
        which is traced here: its code stays here. Raises ApiError, JobFailed, and what `export` raises.
        """
        if hasattr(model, "state_dict") and hasattr(model, "forward"):
            if example is None:
                raise EnginesmithError("an nn.Module needs example=: a tensor (or a tuple of them) that it takes")
            from .export import export

            model = export(model, example)
        if isinstance(getattr(model, "weights", None), bytes):
            architecture = architecture or model.architecture
            signature = signature or model.signature
            model, filename = model.weights, filename or f"{name}.safetensors"
        manifest = {
            "name": name,
            "architecture": architecture,
            "signature": signature,
            "task": task,
            "labels": list(labels) if labels is not None else None,
            "preprocess": preprocess,
        }
        with opened(model, filename or name) as (found, file):
            answer = self._transport.json(
                "POST",
                "/v1/models",
                makes_job=True,
                rewind=file,
                data={"manifest": json.dumps({k: v for k, v in manifest.items() if v is not None})},
                files={"file": (filename or found, file, "application/octet-stream")},
            )
        job = Job(answer)
        if not wait:
            return job
        done = self._jobs.wait(job, timeout)
        return self.version(done["result"]["model"])

    def list(self, *, limit: int | None = None) -> Names:
        return list(self._transport.pages("/v1/models", limit=limit))

    def get(self, name: str) -> Record:
        """A model with its `versions`."""
        return cast(Record, self._transport.json("GET", f"/v1/models/{split_ref(name)[0]}"))

    def version(self, ref: str, number: int | None = None) -> Version:
        """`name@3`, or ("name", 3), or `name` for the newest."""
        name, n = split_ref(ref)
        n = number or n
        if n is None:
            return Version(max(self.get(name)["versions"], key=lambda version: version["version"]))
        return Version(self._transport.json("GET", f"/v1/models/{name}/versions/{n}"))

    def lineage(self, name: str) -> Record:
        return cast(Record, self._transport.json("GET", f"/v1/models/{split_ref(name)[0]}/lineage"))

    def recipe(self, ref: str) -> Record:
        """The chain of specs that made a version, from its upload on; `client.replay` does it to another checkpoint."""
        version = self.version(ref)
        path = f"/v1/models/{version.name}/versions/{version.version}/recipe"
        return cast(Record, self._transport.json("GET", path))

    def architecture(self, version: Version) -> Any:
        """The network of a version as data; None where its format has none."""
        if ARCHITECTURE not in version.files:
            return None
        path = f"/v1/models/{version.name}/versions/{version.version}/files/{ARCHITECTURE}"
        return parse(self._transport.request("GET", path, headers={"Accept": "*/*"}).content)

    def download(self, ref: str, to: str | os.PathLike[str]) -> Path:
        """Every file of a version into the folder `to`, each checked against its SHA-256. Returns the folder."""
        version = self.version(ref)
        folder = Path(to)
        for path, sha256 in version.files.items():
            target = folder / path
            if not target.resolve().is_relative_to(folder.resolve()):
                raise EnginesmithError(f"the service names a file outside the folder: {path!r}")
            target.parent.mkdir(parents=True, exist_ok=True)
            self._fetch(f"/v1/models/{version.name}/versions/{version.version}/files/{path}", target, sha256)
        return folder

    def _fetch(self, url: str, target: Path, sha256: str) -> None:
        """One file, going on where a lost connection left it."""
        part = target.with_name(f"{target.name}.part")
        part.unlink(missing_ok=True)
        for attempt in range(self._transport.retries + 1):
            have = part.stat().st_size if part.exists() else 0
            # No compression on the way: a range counts the bytes of the file itself.
            headers = {"Accept": "*/*", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
            try:
                with (
                    self._transport.stream("GET", url, headers=headers) as response,
                    part.open("ab" if response.status_code == 206 else "wb") as file,
                ):
                    for chunk in response.iter_bytes():
                        file.write(chunk)
                break
            except httpx.TransportError as error:
                if attempt == self._transport.retries:
                    raise Unreachable(self._transport.url, error) from error
                self._transport.sleep(pause(attempt))
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            part.unlink()
            raise EnginesmithError(f"{target.name} arrived damaged: its SHA-256 is {found}, not {sha256}")
        part.replace(target)

    def delete(self, ref: str) -> None:
        """One version, `name@3`."""
        name, n = split_ref(ref)
        if n is None:
            raise ValueError(f"say which version of {name} goes: {name}@1")
        self._transport.request("DELETE", f"/v1/models/{name}/versions/{n}")


class Datasets:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def push(
        self,
        name: str,
        data: Any = None,
        *,
        kind: str | None = None,
        target: str | None = None,
        splits: Mapping[str, Any] | None = None,
        labels: Iterable[str] | None = None,
        preprocess: Mapping[str, Any] | None = None,
        **arrays: Any,
    ) -> Record:
        """Uploads a data set: a file (.npz, .zip of images, .csv, .parquet), or arrays by name.

        arrays: x and y, optionally x_val, y_val, x_test, y_test. Returns it once the service has validated it.
        Raises ApiError.
        """
        if isinstance(data, Mapping):
            data, arrays = None, dict(data) | arrays
        if (data is None) == (not arrays):
            raise ValueError("give a file, or arrays: x=… and y=…")
        manifest: dict[str, Any] = {
            "name": name,
            "target": target,
            "splits": splits,
            "labels": list(labels) if labels is not None else None,
            "preprocess": preprocess,
        }
        with packed(arrays) if arrays else opened(data, name) as (filename, file):
            manifest["kind"] = kind or ("arrays" if arrays else kind_of(filename))
            answer = self._transport.json(
                "POST",
                "/v1/datasets",
                rewind=file,
                data={"manifest": json.dumps({k: v for k, v in manifest.items() if v is not None})},
                files={"file": (filename, file, "application/octet-stream")},
            )
        return cast(Record, answer)

    def list(self, *, limit: int | None = None) -> Names:
        return list(self._transport.pages("/v1/datasets", limit=limit))

    def get(self, ref: str) -> Record:
        name, n = split_ref(ref)
        return cast(Record, self._transport.json("GET", f"/v1/datasets/{name}" + (f"/versions/{n}" if n else "")))

    def delete(self, ref: str) -> None:
        name, n = split_ref(ref)
        self._transport.request("DELETE", f"/v1/datasets/{name}" + (f"/versions/{n}" if n else ""))
