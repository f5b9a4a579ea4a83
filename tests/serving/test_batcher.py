"""The queue in front of an engine: what shares a run, what never reaches it, and that everybody is answered."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from app.domain.records import Signature, Tensor
from app.errors import BadTensor, DeadlineExceeded, Internal, Overloaded, Unavailable
from app.metrics import Meter
from app.runtimes import Arrays
from app.runtimes._slots import PlainSlot
from app.runtimes.echo import Behaviour, EchoEngine
from app.serving.batcher import Batcher, Stages

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
        assert self.gate.acquire(timeout=60)
        self.given.append(np.array(inputs["x"]))
        if self.fail is not None:
            error, self.fail = self.fail, None
            self.seen.append(-1)
            raise error
        return super().infer(inputs)


@asynccontextmanager
async def batching(engine: EchoEngine, **options: Any) -> AsyncIterator[Batcher]:
    batcher = Batcher(engine, Meter("m", "1"), **options)
    yield batcher
    if isinstance(engine, Gated):
        engine.gate.release(1000)
    await batcher.close(5)


def rows(n: int, value: float = 0.0, width: int = 2) -> dict[str, np.ndarray]:
    return {"x": np.full((n, width), value, np.float32)}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def started(engine: Gated, batcher: Batcher) -> asyncio.Task[Any]:
    """A request that occupies the engine, so that what comes next has to wait."""
    task = asyncio.create_task(batcher.submit(rows(1, -1)))
    await until(lambda: batcher.waiting_rows == 0 and task.get_stack() != [] and batcher.running == 1)
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
    async with batching(Gated()) as batcher:
        task = asyncio.create_task(batcher.submit(rows(1)))
        await asyncio.sleep(0)  # it is queued
        await asyncio.sleep(0)  # it runs: no timer, no further turn of the loop
        assert (batcher.running, batcher.waiting_rows) == (1, 0)
        task.cancel()


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
        batcher.pace.row_s = 3.2  # measured: 3.2 s a row
        with pytest.raises(Overloaded) as caught:
            await batcher.submit(rows(1))
        assert caught.value.headers["Retry-After"] == "13"
        engine.gate.release(10)
        await asyncio.gather(*kept)
        await batcher.submit(rows(1))
        assert batcher.meter.failed["REJECTED"] == 2


async def test_a_deadline_that_passes_in_the_queue_does_not_bother_the_engine() -> None:
    engine = Gated()
    async with batching(engine) as batcher:
        first = await started(engine, batcher)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(rows(1), deadline=began + 0.05)
        assert time.monotonic() - began > 0.04
        assert batcher.waiting_rows == 0
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(rows(1), deadline=time.monotonic() - 1)
        engine.gate.release(10)
        await first
        await batcher.submit(rows(1), deadline=time.monotonic() + 100)
        assert engine.seen == [1, 1]
        assert (batcher.meter.missed, batcher.meter.refused["deadline"]) == (2, 2)


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
    await until(lambda: batcher.running == 1)
    closing = asyncio.create_task(batcher.close(10))
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
    engine = EchoEngine(ROWS, delay_s=0.02)
    batcher = Batcher(engine, Meter("m", "1"), max_batch=1)
    tasks = [asyncio.create_task(batcher.submit(rows(1, i))) for i in range(waiting)]
    await until(lambda: batcher.running == 1)
    await batcher.close(10)
    assert [(await task)["y"][0, 0] for task in tasks] == list(range(waiting))


async def test_closing_answers_even_those_whose_engine_hangs() -> None:
    engine = Gated()
    batcher = Batcher(engine, Meter("m", "1"), max_batch=2)
    tasks = [asyncio.create_task(batcher.submit(rows(1, i))) for i in range(5)]
    await until(lambda: batcher.running == 1)
    await batcher.close(0.05)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(r, Unavailable) and r.code == "shutting_down" for r in results)
    engine.gate.release(100)
    await asyncio.sleep(0.05)


async def test_a_delay_waits_for_more_but_not_past_a_full_batch() -> None:
    engine = EchoEngine(ROWS)
    async with asyncio.timeout(60), batching(engine, max_batch=4, max_delay_ms=100_000) as batcher:
        alone = asyncio.create_task(batcher.submit(rows(1)))
        await until(lambda: batcher.waiting_rows == 1)
        await asyncio.gather(alone, batcher.submit(rows(3)))
        assert engine.seen == [4]


async def test_a_delay_ends() -> None:
    async with batching(EchoEngine(ROWS), max_delay_ms=50) as batcher:
        began = time.monotonic()
        await batcher.submit(rows(1))
        assert time.monotonic() - began > 0.045


async def test_closing_does_not_wait_for_a_delay() -> None:
    batcher = Batcher(EchoEngine(ROWS), Meter("m", "1"), max_delay_ms=100_000)
    task = asyncio.create_task(batcher.submit(rows(1)))
    await until(lambda: batcher.waiting_rows == 1)
    await batcher.close(60)
    assert (await task)["y"].shape == (1, 2)


async def test_instances_run_at_once() -> None:
    engine = Gated()
    async with batching(engine, max_batch=1, instances=2) as batcher:
        tasks = [asyncio.create_task(batcher.submit(rows(1))) for _ in range(3)]
        await until(lambda: batcher.running == 2)
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
    engine = Gated()
    async with batching(engine) as batcher:
        task = await started(engine, batcher)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done()
        engine.gate.release(1)
        await task


async def test_many_at_once_get_their_own_answers() -> None:
    engine = EchoEngine(ROWS)
    async with batching(engine, max_batch=16, max_queue=10_000, instances=2) as batcher:

        async def one(i: int) -> None:
            n = 1 + i % 5
            answer = await batcher.submit(rows(n, i))
            np.testing.assert_array_equal(answer["y"], rows(n, i)["x"])

        await asyncio.gather(*(one(i) for i in range(500)))
        assert sum(engine.seen) == sum(1 + i % 5 for i in range(500))
        assert max(engine.seen) <= 16
    gc.collect()


async def test_priority_one_goes_first_and_zero_is_the_middle() -> None:
    engine = Gated()
    async with batching(engine, max_batch=1) as batcher:
        await started(engine, batcher)
        tasks = [asyncio.create_task(batcher.submit(rows(1, p), priority=p)) for p in (9, 0, 1, 6, 4, 0, 1, 77)]
        await until(lambda: batcher.waiting_rows == 8)
        engine.gate.release(100)
        await asyncio.gather(*tasks)
        assert [int(g[0, 0]) for g in engine.given[1:]] == [1, 1, 4, 0, 0, 6, 9, 77]


async def test_lower_priorities_fill_a_batch_up() -> None:
    engine = Gated()
    async with batching(engine, max_batch=4) as batcher:
        await started(engine, batcher)
        tasks = [asyncio.create_task(batcher.submit(rows(1, p), priority=p)) for p in (0, 0, 0, 1, 1)]
        await until(lambda: batcher.waiting_rows == 5)
        engine.gate.release(100)
        await asyncio.gather(*tasks)
        assert [g[:, 0].tolist() for g in engine.given[1:]] == [[1, 1, 0, 0], [0]]


async def test_the_queue_is_bounded_by_bytes_too() -> None:
    engine = Gated(OPEN)
    async with batching(engine, max_queue_bytes=1000) as batcher:
        await started(engine, batcher)
        large = asyncio.create_task(batcher.submit(rows(1, 0, 1000)))  # alone it is taken, whatever its size
        await until(lambda: batcher.waiting_rows == 1)
        with pytest.raises(Overloaded, match="MiB"):
            await batcher.submit(rows(1))
        engine.gate.release(10)
        await large
        assert batcher.meter.refused["queue_full"] == 1


async def test_a_deadline_that_passes_during_a_run_is_answered_at_once() -> None:
    engine = Gated()
    async with batching(engine) as batcher:
        task = asyncio.create_task(batcher.submit(rows(1), deadline=time.monotonic() + 0.05))
        with pytest.raises(DeadlineExceeded):
            await task
        assert batcher.running == 1
        engine.gate.release(1)
        await until(lambda: batcher.running == 0)
        assert batcher.meter.succeeded == 0


async def test_stages_are_told() -> None:
    engine = Gated()
    async with batching(engine) as batcher:
        await started(engine, batcher)
        stages = [Stages(), Stages()]
        tasks = [asyncio.create_task(batcher.submit(rows(2, 1), stages=s)) for s in stages]
        await until(lambda: batcher.waiting_rows == 4)
        engine.gate.release(2)
        await asyncio.gather(*tasks)
        for s in stages:
            assert (s.rows, s.requests) == (4, 2)
            assert 0 < s.came <= s.started <= s.gathered <= s.ended <= s.answered


@pytest.mark.parametrize("together", [1, 3])
async def test_an_engine_that_loses_rows_is_found_out(together: int) -> None:
    engine = EchoEngine(ROWS, behaviour=Behaviour(short_on=7))
    async with batching(engine) as batcher:
        found = await asyncio.gather(*(batcher.submit(rows(1, 7)) for _ in range(together)), return_exceptions=True)
        assert [(type(e), e.code) for e in found if isinstance(e, Internal)] == [(Internal, "engine_failed")] * together
        assert (await batcher.submit(rows(1, 1)))["y"][0, 0] == 1


async def test_an_engine_that_forgets_an_output_is_found_out() -> None:
    class Forgetful(EchoEngine):
        def infer(self, inputs: Arrays) -> dict[str, Any]:
            super().infer(inputs)
            return {}

    async with batching(Forgetful(ROWS)) as batcher:
        with pytest.raises(Internal, match="'y' is missing"):
            await batcher.submit(rows(1))


async def test_nan_is_an_answer() -> None:
    async with batching(EchoEngine(ROWS, behaviour=Behaviour(nan_on=7))) as batcher:
        assert np.isnan((await batcher.submit(rows(1, 7)))["y"]).all()


async def test_everyone_raises_an_error_of_ones_own() -> None:
    engine = EchoEngine(ROWS, behaviour=Behaviour(raise_on=7))
    async with batching(engine) as batcher:
        found = await asyncio.gather(*(batcher.submit(rows(1, 7)) for _ in range(3)), return_exceptions=True)
        assert engine.seen == [3]
        assert len({id(error) for error in found}) == 3


async def test_what_is_dropped_lets_its_rows_go() -> None:
    """Neither the queue nor an idle thread keeps the arrays of those who have gone or were answered."""
    engine = Gated()
    async with batching(engine) as batcher:
        await started(engine, batcher)
        arrays = [rows(1, i)["x"] for i in range(3)]
        held = [weakref.ref(array) for array in arrays]
        tasks = [asyncio.create_task(batcher.submit({"x": array})) for array in arrays]
        del arrays
        await until(lambda: batcher.waiting_rows == 3)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        engine.gate.release(10)
        await asyncio.gather(*tasks, return_exceptions=True)
        del tasks
        engine.given.clear()
        await until(lambda: gc.collect() >= 0 and not any(ref() is not None for ref in held))


async def test_a_few_rows_are_divided_where_that_pays() -> None:
    engine = Gated()
    async with batching(engine, max_batch=8, instances=2) as batcher:
        for n in (1, 2, 4, 8) * 5:
            batcher.pace.ran(n, 0.0, 0.001 + 0.010 * n, 0.0)  # a run costs 1 ms, and 10 for each row
        tasks = [asyncio.create_task(batcher.submit(rows(1))) for _ in range(4)]
        await until(lambda: batcher.running == 2)
        assert batcher.waiting_rows == 0
        engine.gate.release(10)
        await asyncio.gather(*tasks)
        assert engine.seen == [2, 2]


async def test_batches_are_cut_back_to_sizes_that_an_engine_knows() -> None:
    class Choosy(Gated):
        met = frozenset({1, 2, 4})

    engine = Choosy()
    async with batching(engine, max_batch=8) as batcher:
        await started(engine, batcher)
        tasks = [asyncio.create_task(batcher.submit(rows(1, i))) for i in range(7)]
        await until(lambda: batcher.waiting_rows == 7)
        engine.gate.release(10)
        assert [(await task)["y"][0, 0] for task in tasks] == list(range(7))
        assert (await batcher.submit(rows(3)))["y"].shape == (3, 2)  # no beginning of it has a size that is known
        assert engine.seen == [1, 4, 2, 1, 3]


@pytest.mark.parametrize("engine", [EchoEngine(ROWS), EchoEngine(SINGLE)])
async def test_a_batch_axis_or_none_the_wrong_input_is_told(engine: EchoEngine) -> None:
    async with batching(engine) as batcher:
        with pytest.raises(BadTensor):
            await batcher.submit({"x": np.zeros((1, 3), np.float32)})
        assert batcher.meter.refused["bad_tensor"] == 1


async def test_a_whole_batch_does_not_wait_for_the_end_of_the_loops_turn() -> None:
    """Where thousands of requests have come at once a turn takes long, and the engine would be idle."""
    engine = EchoEngine(ROWS)
    async with batching(engine, max_batch=2, max_queue=2) as batcher:

        async def request(value: float) -> Any:
            return (await batcher.submit(rows(1, value)))["y"][0, 0]

        async def hold_up_the_loop(runs: int) -> None:
            until = time.monotonic() + 60
            (runner,) = batcher._crew.flying
            while len(engine.seen) < runs or runner._ended is None:
                assert time.monotonic() < until
                time.sleep(0.001)

        # All of these begin in one turn of the loop. The fifth would find a full queue, if nobody looked.
        answers = await asyncio.gather(
            request(1), request(2), hold_up_the_loop(1), request(3), request(4), hold_up_the_loop(2), request(5)
        )
        assert [a for a in answers if a is not None] == [1, 2, 3, 4, 5]
        assert engine.seen == [2, 2, 1]


async def test_what_a_run_took_on_a_gpu_is_counted() -> None:
    class Slotted(PlainSlot):
        on_gpu = (0.001, 0.002, 0.003, True)

    class OnGpu(EchoEngine):
        def slot(self) -> Slotted:
            return Slotted(self, 8)

    async with batching(OnGpu(ROWS)) as batcher:
        await batcher.submit(rows(1))
        await batcher.submit(rows(2))
        assert batcher.meter.graphs == 2
        assert batcher.meter.on_gpu["compute"].total == pytest.approx(0.004)
