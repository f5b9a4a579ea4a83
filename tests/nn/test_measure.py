"""Latency, and the lock that makes training wait for it."""

import threading
import time

from workers.nn.measure import alone, between_steps, latency


def test_latency_counts_enough_runs() -> None:
    found = latency(lambda: time.sleep(0.001), runtime="torch", batch=4, threads=1)
    assert found.runs >= 30
    assert 1 <= found.p50_ms <= found.p95_ms <= found.p99_ms
    assert found.throughput_rps <= 4000


def test_slow_runs_are_not_repeated_for_ever() -> None:
    began = time.monotonic()
    assert latency(lambda: time.sleep(0.6), runtime="torch", batch=1, threads=1).runs < 10
    assert time.monotonic() - began < 7


def test_training_pauses_while_something_is_measured_and_does_not_starve_it() -> None:
    steps: list[float] = []
    stop = threading.Event()

    def train() -> None:
        with between_steps() as turn:
            while not stop.is_set():
                with turn:
                    steps.append(time.monotonic())
                    time.sleep(0.002)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        time.sleep(0.1)
        with alone():  # would wait for ever, were the steps not to let it in
            began = time.monotonic()
            time.sleep(0.2)
            ended = time.monotonic()
        time.sleep(0.1)
    finally:
        stop.set()
        thread.join()
    assert not [s for s in steps if began < s < ended]
    assert [s for s in steps if s >= ended]


def test_a_disturbed_round_is_measured_again() -> None:
    calls = iter(range(10**6))

    def run() -> None:
        n = next(calls)
        time.sleep(0.03 if 7 < n < 30 else 0.002)  # somebody else has the processor for a while

    assert latency(run, runtime="torch", batch=1, threads=1).p50_ms < 10
