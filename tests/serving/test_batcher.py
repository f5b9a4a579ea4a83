"""The queue in front of an engine: what shares a run, what never reaches it, and that everybody is answered."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app.domain.records import Signature, Tensor
from app.errors import BadTensor, DeadlineExceeded, Internal, Overloaded, Unavailable
from app.metrics import Meter
from app.runtimes import Arrays
from app.runtimes.echo import EchoEngine
from app.serving.batcher import Batcher

from .conftest import PATIENCE_S, Held, until

ROWS = Signature(inputs=(Tensor(name="x", shape=(-1, 2)),), outputs=(Tensor(name="y", shape=(-1, 2)),))
OPEN = Signature(inputs=(Tensor(name="x", shape=(-1, -1)),), outputs=(Tensor(name="y", shape=(-1, -1)),))
SINGLE = Signature(
    inputs=(
        Tensor(name="x", shape=(1, 2), batch_axis=None),
        Tensor(name="sr", dtype="int64", shape=(), batch_axis=None),
    ),
    outputs=(Tensor(name="y", shape=(1, 2), batch_axis=None),),
)


class Gated(EchoEngine):
    """An echo whose runs wait for the test to let them through."""

    def __init__(self, signature: Signature = ROWS) -> None:
        super().__init__(signature)
        self.gate = threading.Semaphore(0)
        self.fail: Exception | None = None
        self.given: list[np.ndarray] = []

    def infer(self, inputs: Arrays) -> dict[str, Any]:
        assert self.gate.acquire(timeout=PATIENCE_S)
        self.given.append(np.array(inputs["x"]))
        if self.fail is not None:
            error, self.fail = self.fail, None
            self.seen.append(-1)
            raise error
        return super().infer(inputs)


@asynccontextmanager
async def batching(engine: EchoEngine | Held, **options: Any) -> AsyncIterator[Batcher]:
    batcher = Batcher(engine, Meter("m", "1"), **options)
    yield batcher
    if isinstance(engine, Gated):
        engine.gate.release(1000)
    await batcher.close(PATIENCE_S)


def rows(n: int, value: float = 0.0, width: int = 2) -> dict[str, np.ndarray]:
    return {"x": np.full((n, width), value, np.float32)}


async def started(engine: Gated, batcher: Batcher) -> asyncio.Task[Any]:
    """A request that occupies the engine, so that what comes next has to wait."""
    task = asyncio.create_task(batcher.submit(rows(1, -1)))
    await until(lambda: batcher.waiting_rows == 0 and task.get_stack() != [] and len(batcher._flying) == 1)
    return task


async def test_what_arrives_while_the_engine_runs_is_the_next_batch() -> None:
    engine = Gated()
    async with batching(engine, max_batch=8) as batcher:
        first = await started(engine, batcher)
        rest = [asyncio.create_task(batcher.submit(rows(1 + i % 2, i))) for i in range(4)]
        await until(lambda: batcher.waiting_rows == 6)
        engine.gate.release(2)
        answers = [await task for task in rest]
        await first
        assert engine.seen == [1, 6]
        for i, answer in enumerate(answers):
            np.testing.assert_array_equal(answer["y"], rows(1 + i % 2, i)["x"])
        meter = batcher.meter
        assert (meter.succeeded, meter.rows, meter.runs, meter.pending) == (5, 7, 2, 0)
        assert meter.queue_us > 0
        assert meter.total_us >= meter.queue_us


async def test_an_idle_engine_adds_no_wait() -> None:
    engine = Gated()
    async with batching(engine) as batcher:
        for _ in range(5):
            task = asyncio.create_task(batcher.submit(rows(1)))
            # One turn of the event loop to ask, one to hand it to the engine: no timer comes between.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert (len(batcher._flying), batcher.waiting_rows, batcher._timer) == (1, 0, None)
            engine.gate.release()
            await task


async def test_a_request_is_never_cut_apart_and_the_order_is_kept() -> None:
    engine = Gated()
    async with batching(engine, max_batch=4) as batcher:
        await started(engine, batcher)
        tasks = [asyncio.create_task(batcher.submit(rows(n, n))) for n in (3, 3, 1, 4, 1)]
        await until(lambda: batcher.waiting_rows == 12)
        engine.gate.release(10)
        await asyncio.gather(*tasks)
        assert engine.seen == [1, 3, 4, 4, 1]


async def test_only_requests_of_one_shape_share_a_run() -> None:
    engine = Gated(OPEN)
    async with batching(engine, max_batch=8) as batcher:
        await started(engine, batcher)
        widths = (2, 3, 2, 3, 3)
        tasks = [asyncio.create_task(batcher.submit(rows(1, i, w))) for i, w in enumerate(widths)]
        await until(lambda: batcher.waiting_rows == 5)
        engine.gate.release(10)
        for i, (task, width) in enumerate(zip(tasks, widths, strict=True)):
            np.testing.assert_array_equal((await task)["y"], np.full((1, width), i, np.float32))
        assert [g.shape for g in engine.given] == [(1, 2), (2, 2), (3, 3)]


async def test_a_signature_without_a_batch_runs_one_request_at_a_time() -> None:
    engine = Gated(SINGLE)
    async with batching(engine, max_batch=8) as batcher:
        given = {"x": np.zeros((1, 2), np.float32), "sr": np.array(16000)}
        tasks = [asyncio.create_task(batcher.submit(given)) for _ in range(3)]
        engine.gate.release(3)
        await asyncio.gather(*tasks)
        assert engine.seen == [1, 1, 1]


async def test_more_rows_than_max_batch() -> None:
    async with batching(EchoEngine(ROWS), max_batch=4) as batcher:
        with pytest.raises(BadTensor, match="5 rows in one request, and max_batch is 4"):
            await batcher.submit(rows(5))
        assert batcher.meter.failed["OTHER"] == 1


async def test_a_full_queue_says_when_to_come_back() -> None:
    engine = Gated()
    async with batching(engine, max_batch=4, max_queue=4) as batcher:
        await started(engine, batcher)
        kept = [asyncio.create_task(batcher.submit(rows(2))) for _ in range(2)]
        await until(lambda: batcher.waiting_rows == 4)
        with pytest.raises(Overloaded) as caught:
            await batcher.submit(rows(1))
        assert int(caught.value.headers["Retry-After"]) >= 1
        batcher._row_s = 3.2  # measured: 3.2 s a row
        with pytest.raises(Overloaded) as caught:
            await batcher.submit(rows(1))
        assert caught.value.headers["Retry-After"] == "13"
        engine.gate.release(10)
        await asyncio.gather(*kept)
        await batcher.submit(rows(1))
        assert batcher.meter.failed["REJECTED"] == 2


async def test_the_drain_rate_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]

    class Timed(EchoEngine):
        """Each run takes 0.02 s of a clock that nothing else moves."""

        def infer(self, inputs: Arrays) -> dict[str, Any]:
            clock[0] += 0.02
            return super().infer(inputs)

    monkeypatch.setattr("app.serving.batcher.time", SimpleNamespace(monotonic=lambda: clock[0]))
    async with batching(Timed(ROWS), max_batch=1) as batcher:
        await asyncio.gather(*(batcher.submit(rows(1)) for _ in range(10)))
        assert batcher._row_s == pytest.approx(0.02)


async def test_a_deadline_that_passes_in_the_queue_does_not_bother_the_engine() -> None:
    engine = Gated()
    async with batching(engine) as batcher:
        first = await started(engine, batcher)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(rows(1), deadline=began + 0.05)
        assert time.monotonic() - began > 0.04  # and it ended at all, though the engine is still held
        assert batcher.waiting_rows == 0
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(rows(1), deadline=time.monotonic() - 1)
        engine.gate.release(10)
        await first
        await batcher.submit(rows(1), deadline=time.monotonic() + PATIENCE_S)
        assert engine.seen == [1, 1]


async def test_a_request_whose_client_has_gone_never_reaches_the_engine() -> None:
    engine = Gated()
    async with batching(engine, max_queue=3) as batcher:
        await started(engine, batcher)
        gone = asyncio.create_task(batcher.submit(rows(2, 5)))
        stays = asyncio.create_task(batcher.submit(rows(1, 6)))
        await until(lambda: batcher.waiting_rows == 3)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert batcher.waiting_rows == 1
        engine.gate.release(10)
        np.testing.assert_array_equal((await stays)["y"], rows(1, 6)["x"])
        assert engine.seen == [1, 1]
        assert batcher.meter.failed["CANCELED"] == 1


async def test_an_error_reaches_exactly_its_own_batch() -> None:
    engine = Gated()
    async with batching(engine, max_batch=2) as batcher:
        await started(engine, batcher)
        tasks = [asyncio.create_task(batcher.submit(rows(1, i))) for i in range(4)]
        await until(lambda: batcher.waiting_rows == 4)
        engine.gate.release(1)
        await until(lambda: engine.seen == [1])
        engine.fail = Internal("it broke", code="engine_failed")
        engine.gate.release(10)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(r, Internal) for r in results] == [True, True, False, False]
        assert batcher.meter.failed["BACKEND"] == 2
        assert (await batcher.submit(rows(1, 9)))["y"][0, 0] == 9


async def test_an_error_of_no_known_kind_is_ours() -> None:
    engine = Gated()
    engine.fail = ZeroDivisionError("oops")
    engine.gate.release(1)
    async with batching(engine) as batcher:
        with pytest.raises(Internal, match="ZeroDivisionError"):
            await batcher.submit(rows(1))


async def test_closing_serves_those_who_wait() -> None:
    engine = Gated()
    batcher = Batcher(engine, Meter("m", "1"), max_batch=2)
    tasks = [asyncio.create_task(batcher.submit(rows(1, i))) for i in range(5)]
    await until(lambda: len(batcher._flying) == 1)
    closing = asyncio.create_task(batcher.close(PATIENCE_S))
    await asyncio.sleep(0.01)
    with pytest.raises(Unavailable):
        await batcher.submit(rows(1))
    engine.gate.release(100)
    for i, task in enumerate(tasks):
        assert (await task)["y"][0, 0] == i
    await closing
    with pytest.raises(Unavailable):
        engine.infer(rows(1))


@pytest.mark.parametrize("waiting", range(1, 6))
async def test_closing_waits_for_the_last_batch_too(waiting: int) -> None:
    """The moment in which the queue is empty and the last batch has not left yet is not the end."""
    engine = Gated()
    batcher = Batcher(engine, Meter("m", "1"), max_batch=1)
    tasks = [asyncio.create_task(batcher.submit(rows(1, i))) for i in range(waiting)]
    await until(lambda: len(batcher._flying) == 1)
    closing = asyncio.create_task(batcher.close(PATIENCE_S))
    for done in range(1, waiting + 1):
        assert not closing.done()
        engine.gate.release()
        await until(lambda n=done: len(engine.seen) == n)  # type: ignore[misc]
    await closing
    assert [(await task)["y"][0, 0] for task in tasks] == list(range(waiting))


async def test_closing_answers_even_those_whose_engine_hangs() -> None:
    engine = Gated()
    batcher = Batcher(engine, Meter("m", "1"), max_batch=2)
    tasks = [asyncio.create_task(batcher.submit(rows(1, i))) for i in range(5)]
    await until(lambda: len(batcher._flying) == 1)
    await batcher.close(0.05)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(r, Unavailable) and r.code == "shutting_down" for r in results)
    engine.gate.release(100)
    await until(lambda: not batcher._flying)  # no thread of this test outlives it


async def test_a_delay_waits_for_more_but_not_past_a_full_batch() -> None:
    engine = EchoEngine(ROWS)
    async with batching(engine, max_batch=4, max_delay_ms=3_600_000) as batcher:
        alone = asyncio.create_task(batcher.submit(rows(1)))
        await asyncio.sleep(0.02)
        assert (engine.seen, alone.done()) == ([], False)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(alone, batcher.submit(rows(3)))
        assert engine.seen == [4]
    async with batching(engine := EchoEngine(ROWS), max_batch=4, max_delay_ms=200) as batcher:
        began = time.monotonic()
        async with asyncio.timeout(PATIENCE_S):
            await batcher.submit(rows(1))
        assert time.monotonic() - began > 0.15
        assert engine.seen == [1]


async def test_instances_run_at_once() -> None:
    engine = Gated()
    async with batching(engine, max_batch=1, instances=2) as batcher:
        tasks = [asyncio.create_task(batcher.submit(rows(1))) for _ in range(3)]
        await until(lambda: len(batcher._flying) == 2)
        assert batcher.waiting_rows == 1
        engine.gate.release(3)
        await asyncio.gather(*tasks)


async def test_an_answer_owns_its_rows_alone() -> None:
    engine = Gated()
    async with batching(engine, max_batch=64) as batcher:
        await started(engine, batcher)
        tasks = [asyncio.create_task(batcher.submit(rows(1, i))) for i in range(32)]
        await until(lambda: batcher.waiting_rows == 32)
        engine.gate.release(10)
        for task in tasks:
            answer = (await task)["y"]
            assert answer.base is None
            assert answer.nbytes == 8


async def test_the_event_loop_goes_on_while_the_engine_works() -> None:
    engine = Held(EchoEngine(ROWS))
    async with batching(engine) as batcher:
        task = asyncio.create_task(batcher.submit(rows(1)))
        await until(engine.entered.is_set)
        for _ in range(100):  # a run on the loop itself would never get here: it waits for the gate
            await asyncio.sleep(0)
        assert not task.done()
        engine.gate.set()
        await task


async def test_many_at_once_get_their_own_answers() -> None:
    engine = EchoEngine(ROWS, delay_s=0.001)
    async with batching(engine, max_batch=16, max_queue=10_000, instances=2) as batcher:

        async def one(i: int) -> None:
            n = 1 + i % 5
            answer = await batcher.submit(rows(n, i))
            np.testing.assert_array_equal(answer["y"], rows(n, i)["x"])

        await asyncio.gather(*(one(i) for i in range(500)))
        assert sum(engine.seen) == sum(1 + i % 5 for i in range(500))
        assert max(engine.seen) <= 16
        assert len(engine.seen) < 250
    gc.collect()
