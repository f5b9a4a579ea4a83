"""Enginesmith as its users run it: `enginesmith serve --workers 0`, a version published and deployed, /predict."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np

from benchmarks.peers import Ask, Options, Rows, Sample, flat, json_ask

PACKAGES: tuple[str, ...] = ()


def ask(workload: str, sample: Sample) -> Ask | None:
    kind = workload.rpartition("-")[2]
    if kind == "json":
        return json_ask("/predict/peer", b'{"inputs":%b}' % sample.text)
    if kind == "jpeg":
        return Ask("/predict/peer", sample.jpeg, {"Content-Type": "image/jpeg"})
    stream = io.BytesIO()
    np.save(stream, sample.x)
    return Ask("/predict/peer", stream.getvalue(), {"Content-Type": "application/x-npy"})


def answer(body: bytes) -> Rows:
    if body.startswith(b"\x93NUMPY"):
        return flat(np.load(io.BytesIO(body)))
    return flat(json.loads(body)["outputs"]["logits"])


def command(python: str, given: Options) -> list[str]:
    # BENCH_SERVE: further options of `enginesmith serve`, to compare two ways of running it.
    extra = os.environ.get("BENCH_SERVE", "").split()
    enginesmith = str(Path(python).with_name("enginesmith"))
    serve = [enginesmith, "serve", "--data", str(given.folder), "--port", str(given.port), "--workers", "0", *extra]
    return ["env", f"ENGINESMITH_THREADS={given.threads}", *serve]


def prepare(python: str, given: Options) -> list[str]:
    """What is run once beside the server: publishes the version and deploys it."""
    return given.command(python, "benchmarks.peers.ours_version")
