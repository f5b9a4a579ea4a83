"""The same service as in ours.py, asked through the Open Inference Protocol instead of /predict."""

from __future__ import annotations

import json

from benchmarks.peers import Ask, Rows, Sample, json_ask, triton
from benchmarks.peers.ours import PACKAGES, command, prepare

__all__ = ["PACKAGES", "answer", "ask", "command", "prepare"]


def ask(workload: str, sample: Sample) -> Ask | None:
    """None for images, which /v2 does not take."""
    kind = workload.rpartition("-")[2]
    if kind == "binary":
        return triton.binary("peer", "x", "FP32", sample.x.shape, sample.x.tobytes())
    if kind == "json":
        shape = json.dumps(sample.x.shape).encode()
        told = b'{"inputs":[{"name":"x","datatype":"FP32","shape":%b,"data":%b}]}' % (shape, sample.text)
        return json_ask("/v2/models/peer/infer", told)
    return None


def answer(body: bytes) -> Rows:
    return triton.answer(body)
