"""Latencies of several contestants in one run, in turns (A B C, B C A, …), so that noise favours none."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.records import Latency
from workers.nn.measure import alone, histogram

ROUNDS = 11
BLOCK_S = 0.06  # of one contestant in one round, at least
CALLS = 3  # in a block, at least


@dataclass(frozen=True)
class Ratio:
    """How many times faster than the reference: the median over the rounds, and the middle half of them."""

    ratio: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Timed:
    """latencies: per contestant, over all its calls. ratios: reference ÷ contestant, each formed within one round.
    calls: milliseconds of each call, for a histogram."""

    latencies: dict[str, Latency]
    ratios: dict[str, Ratio]
    calls: dict[str, npt.NDArray[np.float64]]


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    reference: str,
    *,
    batch: int,
    threads: int,
    runtimes: Mapping[str, str],
    device: str = "cpu",
    rounds: int = ROUNDS,
    tell: Callable[[int], Any] = lambda done: None,
) -> Timed:
    """runs: by name, each a call that handles `batch` rows and waits for its result. A block of calls of every one in
    each round, the first one another each time; the host's measure lock is held for a round. tell: rounds done."""
    names = list(runs)
    with alone():
        for run in runs.values():
            _warm_up(run)
    blocks: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in names}
    load = 0.0
    for number in range(rounds):
        start = number % len(names)
        with alone():
            for name in names[start:] + names[:start]:
                blocks[name].append(_block(runs[name]))
            load = max(load, os.getloadavg()[0])
        tell(number + 1)
    calls = {name: np.concatenate(found) for name, found in blocks.items()}
    medians = {name: np.asarray([np.median(block) for block in found]) for name, found in blocks.items()}
    latencies = {
        name: _latency(ms, runtimes.get(name, "torch"), batch, threads, device, load) for name, ms in calls.items()
    }
    ratios = {}
    for name in names:
        found = medians[reference] / medians[name]
        low, middle, high = (float(q) for q in np.percentile(found, (25, 50, 75)))
        ratios[name] = Ratio(middle, low, high, rounds)
    return Timed(latencies, ratios, calls)


def _latency(ms: npt.NDArray[np.float64], runtime: str, batch: int, threads: int, device: str, load: float) -> Latency:
    p50, p95, p99 = (float(p) for p in np.percentile(ms, (50, 95, 99)))
    return Latency(
        runtime=runtime, batch=batch, p50_ms=p50, p95_ms=p95, p99_ms=p99, runs=len(ms), threads=threads, load_1m=load,
        device=device, throughput_rps=batch * len(ms) / float(ms.sum() / 1e3), histogram=histogram(ms),
    )  # fmt: skip


def _warm_up(run: Callable[[], object]) -> None:
    began = time.perf_counter()
    for done in range(1, 21):
        run()
        if done >= 3 and time.perf_counter() - began > 0.1:
            return


def _block(run: Callable[[], object]) -> npt.NDArray[np.float64]:
    """Milliseconds of each call."""
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < CALLS or time.perf_counter() - began < BLOCK_S:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return np.asarray(taken) * 1e3
