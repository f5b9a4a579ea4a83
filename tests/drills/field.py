"""What every drill needs of a running service: engines put into it without a worker, its processes' memory, its log,
and client processes."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
from running import Service, until

from app.domain.records import Made, Signature, Tensor, Version, now
from app.embedded import url_of
from app.settings import MiB, Settings
from app.storage import registry
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog

_CALLER = Path(__file__).with_name("caller.py")
ONES = json.dumps({"inputs": [[1, 1, 1]]}).encode()
ONES_V2 = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}]}).encode()
JSON = {"Content-Type": "application/json"}


def publish(
    service: Service, model: bytes, name: str = "net", max_batch: int = 8, redis_url: str | None = None,
    store: str | None = None, **fields: Any,
) -> Version:  # fmt: skip
    """An ONNX file as a version that ONNX Runtime serves, as a job of kind convert would leave it. fields: of the
    version; `shape` and `width` of its input and output, `file` its name."""
    settings = Settings(data=service.data, store_url=store)
    artifacts = Artifacts(settings.artifacts_url)
    catalog = Catalog.open(settings, redis_url or url_of(service.data), patience_s=60)
    folder = service.data / "made" / f"{name}-{uuid.uuid4().hex[:12]}"
    folder.mkdir(parents=True)
    (folder / fields.pop("file", "model.onnx")).write_bytes(model)
    prefix = f"models/{name}/files/{folder.name}-1"
    files, size = registry.put_files(artifacts, folder, prefix)
    draft = {
        "name": name,
        "version": 1,
        "format": "onnxruntime",
        "folder": prefix,
        "files": files,
        "bytes": size,
        "signature": Signature(
            inputs=(Tensor(name="x", shape=fields.pop("shape", (-1, 3))),),
            outputs=(Tensor(name="logits", shape=(-1, fields.pop("width", 3))),),
        ),
        "made_by": Made(job=f"job-{folder.name}", spec={}),
        "built_for": {"runtime": "onnxruntime"},
        "details": {"precision": "fp32", "max_batch": max_batch},
        "created_at": now(),
    }
    try:
        return registry.publish_version(artifacts, catalog, Version.model_validate(draft | fields))
    finally:
        catalog.redis.close()


def deploy(service: Service, name: str, model: str, **wanted: Any) -> None:
    """Waits until every replica has it."""
    body = {"model": model, **wanted}
    answer = httpx.put(f"{service.url}/v1/deployments/{name}", json=body, headers={"Prefer": "wait=60"}, timeout=120)
    assert answer.status_code in (200, 201), answer.text
    until(lambda: httpx.get(f"{service.url}/v1/deployments/{name}", timeout=60).json()["status"] == "ready")


def predict(service: Service, name: str, rows: Sequence[Sequence[float]] = ((1, 1, 1),), **headers: str) -> Any:
    return httpx.post(f"{service.url}/predict/{name}", json={"inputs": rows}, headers=headers, timeout=120)


def request(path: str, body: bytes, length: int | None = None, **headers: str) -> bytes:
    """As it travels. length: what Content-Length says, where that is another."""
    given = {"Host": "x"} | JSON | {k.replace("_", "-"): v for k, v in headers.items()}
    if "Transfer-Encoding" not in given:
        given["Content-Length"] = str(len(body) if length is None else length)
    head = "".join(f"{k}: {v}\r\n" for k, v in given.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


class Calling:
    """Client processes at work. finish(): what each of them got."""

    def __init__(self, service: Service, requests: Sequence[bytes], processes: int = 1, **order: Any) -> None:
        url = httpx.URL(service.url)
        text = json.dumps(
            order | {"host": url.host, "port": url.port, "requests": [base64.b64encode(r).decode() for r in requests]}
        )
        self._processes = [
            subprocess.Popen([sys.executable, str(_CALLER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]
        for process in self._processes:
            assert process.stdin
            process.stdin.write(text)
            process.stdin.close()

    @property
    def is_over(self) -> bool:
        return all(process.poll() is not None for process in self._processes)

    def finish(self) -> Told:
        texts = []
        for process in self._processes:
            assert process.stdout
            with process.stdout as out:
                texts.append(out.read())
            assert process.wait(600) == 0
        return Told([json.loads(text) for text in texts])

    def stop(self) -> Told:
        """Has them end now, once the requests on their way are answered."""
        for process in self._processes:
            process.send_signal(signal.SIGUSR1)
        return self.finish()

    def end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


class Told:
    """What the processes got, together."""

    def __init__(self, told: list[dict[str, Any]]) -> None:
        self.told = told
        self.statuses: dict[str, int] = {}
        self.said: dict[str, int] = {}
        for one in told:
            for into, key in ((self.statuses, "statuses"), (self.said, "told")):
                for name, count in one[key].items():
                    into[name] = into.get(name, 0) + count
        self.wrong = [text for one in told for text in one["wrong"]]

    def sum(self, name: str) -> float:
        return float(sum(one[name] for one in self.told))

    def worst(self, name: str, place: int) -> float:
        return float(max(one[name][place] for one in self.told))

    def only(self, *statuses: int) -> None:
        """Every request was answered, with one of these."""
        assert self.statuses.keys() <= {str(status) for status in statuses}, (self.statuses, self.said)
        assert (self.sum("resets"), self.sum("unanswered"), self.sum("without_retry")) == (0, 0, 0), self.said
        assert self.wrong == []


@contextmanager
def calling(service: Service, requests: Sequence[bytes], processes: int = 1, **order: Any) -> Iterator[Calling]:
    made = Calling(service, requests, processes, **order)
    try:
        yield made
    finally:
        made.end()


def call(service: Service, requests: Sequence[bytes], processes: int = 1, **order: Any) -> Told:
    with calling(service, requests, processes, **order) as made:
        return made.finish()


def family(service: Service, word: str) -> list[psutil.Process]:
    """The service's descendants with this word in their command line."""
    found = []
    for process in psutil.Process(service.process.pid).children(recursive=True):
        try:
            if any(word == part or (word == "valkey" and word in part) for part in process.cmdline()[:4]):
                found.append(process)
        except psutil.Error:
            continue
    return found


class Fed(NamedTuple):
    """infer: the share of the time in which the engine ran. rows: of a run, on average."""

    infer: float
    rows: float


class Feeding:
    """How well an engine is kept at work, by the service's own counters: what a busy machine takes from it does not
    show, and what the service withholds from it does."""

    def __init__(self, service: Service, name: str) -> None:
        self._service, self._name = service, name
        self._began = self._look()

    def _look(self) -> tuple[float, float, float, float]:
        now = time.monotonic()
        text = httpx.get(f"{self._service.url}/metrics", timeout=240).text

        def of(what: str) -> float:
            return sum(map(float, re.findall(rf'^nv_inference_{what}{{model="{self._name}",.*}} (\S+)$', text, re.M)))

        return now, of("compute_infer_duration_us") / 1e6, of("exec_count"), of("count")

    def so_far(self) -> Fed:
        wall, infer, runs, rows = (b - a for a, b in zip(self._began, self._look(), strict=True))
        per_run = rows / runs  # the duration is counted once for every request, and each has one row
        return Fed(infer / per_run / wall, per_run)


def memory_mib(service: Service) -> float:
    """What the processes that serve hold."""
    return sum(p.memory_info().rss for word in ("http", "engines") for p in family(service, word)) / MiB


def pids(service: Service) -> list[int]:
    """Of the processes that serve: the same ones for as long as none has died."""
    return sorted(p.pid for word in ("http", "engines") for p in family(service, word))


def log_of(service: Service) -> str:
    return (service.data / "service.log").read_text()
