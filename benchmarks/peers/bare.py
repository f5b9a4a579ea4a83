"""Ceiling: the engine in a loop, nothing around it. Told `rows seconds` on a line, answers a line of JSON."""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from benchmarks.peers import Options, options
from benchmarks.peers.engine import Engine

PACKAGES: tuple[str, ...] = ()


def command(python: str, given: Options) -> list[str]:
    return given.command(python, __name__)


def main() -> None:
    given = options()
    engine = Engine(given.onnx, given.threads)
    engine.warm(given.shape)
    print("{}", flush=True)
    for line in sys.stdin:
        rows, seconds = line.split()
        x = np.random.default_rng(0).random((int(rows), *given.shape), np.float32)
        taken = []
        began = now = time.perf_counter()
        while now - began < float(seconds):
            engine(x)
            last, now = now, time.perf_counter()
            taken.append(now - last)
        told = {"per_s": len(taken) * int(rows) / (now - began), "p50_ms": 1e3 * float(np.median(taken))}
        print(json.dumps(told | {"requests": len(taken) * int(rows)}), flush=True)


if __name__ == "__main__":
    main()
