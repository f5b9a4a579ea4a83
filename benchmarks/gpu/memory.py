"""Whether a GPU has its memory back after engines came and went."""

from __future__ import annotations

import gc
from pathlib import Path

from benchmarks.gpu.engines import drawn, load
from benchmarks.gpu.networks import Subject

ROUNDS = 50
ALLOWED = 64 << 20  # bytes: what a driver keeps for itself


def kept_after(subject: Subject, precision: str, runtime: str, folder: Path, rounds: int = ROUNDS) -> int:
    """Bytes of the GPU that are held after so many rounds of loading, running and closing, beyond those after one.
    Of the process where there is no GPU."""
    x = {"input": drawn(subject, max(subject.batches))}
    after_first = 0
    for number in range(rounds):
        engine = load(subject, precision, runtime, folder)
        engine.infer(x)
        engine.close()
        del engine
        gc.collect()
        if number == 0:
            after_first = _held(runtime)
    return _held(runtime) - after_first


def _held(runtime: str) -> int:
    if runtime.startswith("tensorrt"):
        from app.runtimes._trt.runtime import device

        free, total = device().memory()
        return total - free
    from app.memory import private_bytes, trim

    trim()
    return private_bytes() or 0
