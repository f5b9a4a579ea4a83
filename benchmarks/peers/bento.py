"""BentoML: a service of one worker with adaptive batching. Bodies are JSON; bytes travel in them as base64."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.peers import Ask, Options, Rows, Sample, base64_text, flat, json_ask

PACKAGES: tuple[str, ...] = ("bentoml>=1.4,<1.5", "openvino==2026.4.1", "pillow")


def ask(workload: str, sample: Sample) -> Ask | None:
    kind = workload.rpartition("-")[2]
    if kind == "json":
        return json_ask("/by_json", b'{"inputs":%b}' % sample.text)
    content = sample.x.tobytes() if kind == "binary" else sample.jpeg
    return json_ask(f"/by_{kind}", b'{"contents":["%b"]}' % base64_text(content))


def answer(body: bytes) -> Rows:
    return flat(json.loads(body))


def command(python: str, given: Options) -> list[str]:
    told = {"model": given.model, "onnx": str(given.onnx), "threads": given.threads}
    bentoml = str(Path(python).with_name("bentoml"))
    place = ["--host", "127.0.0.1", "--port", str(given.port)]
    quiet = ["BENTOML_DO_NOT_TRACK=1", "PYTHONPATH=.", f"BENCH_PEER={json.dumps(told)}"]
    return ["env", *quiet, bentoml, "serve", "benchmarks.peers.bento_service:Peer", *place]
