"""Latency, by a clock that only the test moves, and the lock that makes training wait for it."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from running import until

from workers.nn.measure import alone, between_steps, histogram, latency


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("workers.nn.measure.time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


@pytest.mark.parametrize(("seconds", "runs"), [(0.001, 300), (0.02, 30)])
def test_latency_counts_enough_runs(clock: Clock, seconds: float, runs: int) -> None:
    found = latency(lambda: clock.passes(seconds), runtime="torch", batch=4, threads=1)
    assert found.runs == pytest.approx(runs, abs=1)
    assert (found.p50_ms, found.p95_ms, found.p99_ms) == pytest.approx((1e3 * seconds,) * 3)
    assert found.throughput_rps == pytest.approx(4 / seconds)
    assert found.histogram is not None
    assert sum(found.histogram.counts) == found.runs
    assert found.histogram.low < found.histogram.high


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has a GPU here")
def test_an_engine_on_a_gpu_is_measured_where_torch_is_a_build_for_cpus(clock: Clock) -> None:
    """The engine has waited for itself; torch would refuse to."""
    assert latency(lambda: clock.passes(0.01), runtime="tensorrt", batch=1, threads=1, device="cuda").device == "cuda"


def test_the_histogram_leaves_the_slowest_out() -> None:
    found = histogram(np.array([1.0] * 50 + [2.0] * 49 + [500.0]))
    assert (found.low, found.high) == (1.0, 2.0)
    assert (found.counts[0], found.counts[-1], sum(found.counts)) == (50, 49, 99)


def test_slow_runs_are_not_repeated_for_ever(clock: Clock) -> None:
    assert latency(lambda: clock.passes(0.6), runtime="torch", batch=1, threads=1).runs < 10
    assert clock.now < 7


def test_training_pauses_while_something_is_measured_and_does_not_starve_it() -> None:
    steps: list[float] = []
    stop = threading.Event()

    def train() -> None:
        with between_steps() as turn:
            while not stop.is_set():
                with turn:
                    steps.append(time.monotonic())
                    time.sleep(0.002)  # so that there is hardly a gap between one step and the next

    thread = threading.Thread(target=train)
    thread.start()
    try:
        until(lambda: len(steps) > 3)
        with alone():  # would wait for ever, were the steps not to let it in
            done = len(steps)
            time.sleep(0.2)
            assert len(steps) == done
        until(lambda: len(steps) > done)
    finally:
        stop.set()
        thread.join()


def test_a_disturbed_round_is_measured_again(clock: Clock) -> None:
    calls = 0

    def run() -> None:
        nonlocal calls
        calls += 1
        clock.passes(0.03 if 55 < calls < 80 else 0.002)  # somebody else has the processor for a while

    assert latency(run, runtime="torch", batch=1, threads=1).p50_ms == pytest.approx(2)
    assert calls > 180  # after the round that was disturbed came a whole one
