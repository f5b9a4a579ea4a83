"""Latency, measured so that it is one: after warm-up, enough runs, and with the host's training paused meanwhile."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from app.domain.records import Histogram, Latency

RUNS, SECONDS, PATIENCE_S = 30, 0.3, 3.0
ROUNDS, DISTURBED = 3, 2.0
BINS, BULK = 24, 98.0  # of a histogram; the slowest calls would squeeze all others into one bin


def latency(
    run: Callable[[], object], *, runtime: str, batch: int, threads: int, device: str = "cpu", rows: int | None = None
) -> Latency:
    """Milliseconds per call of `run`, which handles `batch` rows: at least 30 calls and 0.3 s, unless 3 s are over.

    A round that others disturbed (its median is over twice its fastest call) is measured again, up to twice; the
    calmest one counts. `run` must wait for its own result; for torch on a GPU the device is waited for here.
    """
    # Where torch is a build for CPUs, what runs on a GPU is an engine, which has waited for itself.
    wait = torch.cuda.synchronize if device == "cuda" and torch.cuda.is_available() else _no_wait
    with alone():
        _warm_up(run, wait)
        ms = _round(run, wait)
        for _ in range(ROUNDS - 1):
            if np.median(ms) <= DISTURBED * ms.min():
                break
            ms = min(ms, _round(run, wait), key=np.median)
        load = os.getloadavg()[0]
    p50, p95, p99 = (float(p) for p in np.percentile(ms, (50, 95, 99)))
    return Latency(
        runtime=runtime,
        batch=batch,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        runs=len(ms),
        threads=threads,
        load_1m=load,
        device=device,
        throughput_rps=(rows or batch) * len(ms) / float(ms.sum() / 1e3),
        histogram=histogram(ms),
    )


def histogram(ms: npt.NDArray[np.float64]) -> Histogram:
    """Of all but the slowest fiftieth of the calls."""
    low, high = float(ms.min()), float(np.percentile(ms, BULK))
    high = max(high, low * (1 + 1e-6), low + 1e-9)  # by a clock that is too coarse all may have taken alike
    counts, _ = np.histogram(ms, BINS, (low, high))
    return Histogram(low=low, high=high, counts=tuple(int(count) for count in counts))


def _round(run: Callable[[], object], wait: Callable[[], None]) -> npt.NDArray[np.float64]:
    """Milliseconds of each call."""
    taken: list[float] = []
    began = time.perf_counter()
    while True:
        start = time.perf_counter()
        run()
        wait()
        end = time.perf_counter()
        taken.append(end - start)
        spent = end - began
        if (len(taken) >= RUNS and spent >= SECONDS) or (spent >= PATIENCE_S and len(taken) >= 3):
            return np.asarray(taken) * 1e3


def _warm_up(run: Callable[[], object], wait: Callable[[], None]) -> None:
    began = time.perf_counter()
    for done in range(1, 51):
        run()
        wait()
        spent = time.perf_counter() - began
        if (done >= 5 and spent > 0.1) or spent > 1:
            return


def _no_wait() -> None:
    return None


# Two lock files make up one fair reader-writer lock per host: whoever measures shuts the gate first, so that steps that
# follow each other without a gap cannot keep it waiting for ever. The kernel frees the locks of a killed process.
@contextmanager
def alone() -> Iterator[None]:
    """Holds the host's measure lock: one measurement at a time, and training pauses between two steps."""
    gate, steps = _lock_file("gate"), _lock_file("steps")
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(steps, fcntl.LOCK_EX)
        yield
    finally:
        os.close(steps)
        os.close(gate)


class Steps:
    """What a training loop holds during a step: `with steps: …`. Waits while a measurement goes on."""

    def __init__(self) -> None:
        self._gate, self._steps = _lock_file("gate"), _lock_file("steps")

    def __enter__(self) -> None:
        fcntl.flock(self._gate, fcntl.LOCK_SH)
        fcntl.flock(self._gate, fcntl.LOCK_UN)
        fcntl.flock(self._steps, fcntl.LOCK_SH)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._steps, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._gate)
        os.close(self._steps)


@contextmanager
def between_steps() -> Iterator[Steps]:
    """The Steps of one training run."""
    steps = Steps()
    try:
        yield steps
    finally:
        steps.close()


def _lock_file(name: str) -> int:
    folder = Path(tempfile.gettempdir()) / f"enginesmith-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return os.open(folder / f"measure.{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
