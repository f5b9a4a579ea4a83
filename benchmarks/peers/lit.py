"""LitServe: batching in its own worker process. Bodies are JSON; bytes travel in them as base64."""

from __future__ import annotations

import json

from benchmarks.peers import Ask, Options, Rows, Sample, base64_text, flat, json_ask

PACKAGES: tuple[str, ...] = ("litserve==0.2.19", "openvino==2026.4.1", "pillow", "uvloop", "httptools")


def ask(workload: str, sample: Sample) -> Ask | None:
    kind = workload.rpartition("-")[2]
    if kind == "json":
        return json_ask("/predict", b'{"inputs":%b}' % sample.text)
    content = sample.x.tobytes() if kind == "binary" else sample.jpeg
    return json_ask("/predict", b'{"%b":"%b"}' % (kind.encode(), base64_text(content)))


def answer(body: bytes) -> Rows:
    return flat(json.loads(body)["outputs"])


def command(python: str, given: Options) -> list[str]:
    return given.command(python, "benchmarks.peers.lit_server")
