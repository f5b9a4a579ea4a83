"""An engine that hangs: its requests are answered, it is replaced, and nothing else notices."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from app.domain.records import Signature, Tensor
from app.errors import DeadlineExceeded, EngineLost, Internal, Problem, Unavailable
from app.metrics import Meter
from app.runtimes import Engine
from app.runtimes.echo import Behaviour, EchoEngine
from app.serving import crew
from app.serving.batcher import Batcher

ROWS = Signature(inputs=(Tensor(name="x", shape=(-1, 2)),), outputs=(Tensor(name="y", shape=(-1, 2)),))
HANG, LOSE = 666.0, 13.0
LONG_S = 1000.0


def rows(value: float) -> dict[str, np.ndarray]:
    return {"x": np.full((1, 2), value, np.float32)}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


class Shop:
    """Makes engines that hang on HANG, and ends all of their runs in the end."""

    def __init__(self) -> None:
        self.made: list[EchoEngine] = []
        self.closed: list[EchoEngine] = []
        self.failures: list[Exception] = []

    def __call__(self) -> Engine:
        if self.failures:
            raise self.failures.pop(0)
        shop = self

        class Told(EchoEngine):
            def close(self) -> None:
                shop.closed.append(self)
                super().close()

        self.made.append(Told(ROWS, behaviour=Behaviour(hang_on=HANG, lose_on=LOSE)))
        return self.made[-1]


async def hang(batcher: Batcher) -> asyncio.Task[Any]:
    """A request whose run hangs, and has been found to: as if it had gone on for long."""
    engine = batcher.engine
    assert isinstance(engine, EchoEngine)
    task = asyncio.create_task(batcher.submit(rows(HANG)))
    await until(engine.hanging.is_set)
    for runner in batcher._crew.flying:
        runner.began -= 2 * LONG_S
    batcher._crew._look()
    return task


@asynccontextmanager
async def batching(reopens: bool = True, **options: Any) -> AsyncIterator[tuple[Batcher, Shop]]:
    shop = Shop()
    options = {"run_timeout_s": LONG_S, "max_batch": 1, "reopen": shop if reopens else None} | options
    batcher = Batcher(shop(), Meter("m", "1"), **options)
    yield batcher, shop
    for engine in shop.made:
        engine.released.set()
    await batcher.close(60)


async def test_a_run_that_takes_too_long_is_found() -> None:
    async with batching(run_timeout_s=0.05) as (batcher, shop):
        task = asyncio.create_task(batcher.submit(rows(HANG)))
        await until(shop.made[0].hanging.is_set)
        with pytest.raises(DeadlineExceeded, match=r"within 0.05 s") as caught:
            await task
        assert caught.value.code == "engine_hung"
        assert batcher.meter.hung == 1
        await until(lambda: batcher.engine is not shop.made[0])


async def test_the_rest_goes_on_with_a_fresh_engine() -> None:
    async with batching() as (batcher, shop):
        stuck = asyncio.create_task(batcher.submit(rows(HANG)))
        await until(shop.made[0].hanging.is_set)
        others = [asyncio.create_task(batcher.submit(rows(i))) for i in range(5)]
        await until(lambda: batcher.waiting_rows == 5)
        (runner,) = batcher._crew.flying
        batcher._crew._abandon(runner)
        with pytest.raises(DeadlineExceeded):
            await stuck
        assert [(await task)["y"][0, 0] for task in others] == [0, 1, 2, 3, 4]
        assert batcher.engine is shop.made[1]
        assert shop.made[0].seen == [1]
        await until(lambda: shop.closed == [shop.made[0]])


async def test_the_run_that_hung_answers_nobody_when_it_ends() -> None:
    async with batching() as (batcher, shop):
        with pytest.raises(DeadlineExceeded):
            await (await hang(batcher))
        await batcher.submit(rows(1))
        runs = batcher.meter.runs
        shop.made[0].released.set()
        await asyncio.to_thread(batcher._crew._abandoned[0].thread.join, 60)
        await asyncio.sleep(0)
        assert batcher.meter.runs == runs
        assert (await batcher.submit(rows(2)))["y"][0, 0] == 2


async def test_another_instance_goes_on_while_the_engine_is_replaced() -> None:
    gate, shop = threading.Event(), Shop()

    def reopen() -> Engine:
        assert gate.wait(60)
        return shop()

    async with batching(instances=2, reopen=reopen) as (batcher, first_shop):
        first = first_shop.made[0]
        with pytest.raises(DeadlineExceeded):
            await (await hang(batcher))
        assert (await batcher.submit(rows(1)))["y"][0, 0] == 1
        assert batcher.engine is first
        gate.set()
        await until(lambda: batcher.engine is not first)
        assert len(batcher._crew.idle) == 2
        assert (await batcher.submit(rows(2)))["y"][0, 0] == 2


async def test_an_engine_is_not_closed_under_a_run_that_goes_on() -> None:
    async with batching(instances=2) as (batcher, shop):
        tasks = [asyncio.create_task(batcher.submit(rows(HANG))) for _ in range(2)]
        await until(lambda: shop.made[0].seen == [1, 1])
        old, young = batcher._crew.flying
        batcher._crew._abandon(old)
        await until(lambda: len(shop.made) == 2 and batcher.engine is shop.made[1])
        assert shop.closed == []
        assert young.engine is shop.made[0]
        shop.made[0].released.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(type(r).__name__ for r in results) == ["DeadlineExceeded", "dict"]
        await until(lambda: shop.closed == [shop.made[0]])
        assert (await batcher.submit(rows(3)))["y"][0, 0] == 3


async def test_where_no_engine_can_be_loaded_everybody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_REOPEN_S", (0.01,))
    async with batching() as (batcher, shop):
        shop.failures = [Internal("no file", code="engine_broken"), OSError("disk")]
        stuck = await hang(batcher)
        waits = asyncio.create_task(batcher.submit(rows(1)))
        with pytest.raises(DeadlineExceeded):
            await stuck
        with pytest.raises(Unavailable, match="no file") as caught:
            await waits
        assert caught.value.code == "engine_hung"
        await until(lambda: batcher._crew.broken is None)
        assert (await batcher.submit(rows(2)))["y"][0, 0] == 2  # and it recovers by itself


async def test_a_lost_engine_is_replaced_and_who_waits_meets_the_fresh_one() -> None:
    async with batching() as (batcher, shop):
        await batcher.submit(rows(1))
        asked = [batcher.submit(rows(value)) for value in (LOSE, 2.0, 3.0, 4.0)]
        found: list[Any] = list(await asyncio.gather(*asked, return_exceptions=True))
        assert isinstance(found[0], EngineLost)
        assert [float(answer["y"][0, 0]) for answer in found[1:]] == [2.0, 3.0, 4.0]
        await until(lambda: shop.made[0] in shop.closed)
        assert len(shop.made) == 2
        assert (await batcher.submit(rows(5)))["y"][0, 0] == 5.0


async def test_a_lost_engine_that_cannot_be_loaded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_REOPEN_S", (0.001,))
    async with batching() as (batcher, shop):
        shop.failures = [Internal("no memory"), Internal("no memory")]
        with pytest.raises(EngineLost):
            await batcher.submit(rows(LOSE))
        await until(lambda: len(shop.made) == 2)
        await until(lambda: bool(batcher._crew.idle))
        assert (await batcher.submit(rows(7)))["y"][0, 0] == 7.0


async def test_without_a_way_to_reopen_it_says_so() -> None:
    async with batching(reopens=False) as (batcher, _):
        with pytest.raises(DeadlineExceeded):
            await (await hang(batcher))
        await until(lambda: batcher._crew.broken is not None)
        with pytest.raises(Unavailable, match="cannot be loaded again"):
            await batcher.submit(rows(1))


async def test_engines_are_not_loaded_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_ABANDONED_MOST", 2)
    monkeypatch.setattr(crew, "_REOPEN_S", (0.01,))
    async with batching() as (batcher, shop):
        for _ in range(2):
            with pytest.raises(DeadlineExceeded):
                await (await hang(batcher))
            await until(lambda: batcher._crew._replacing is None or batcher._crew.broken is not None)
        with pytest.raises(Problem, match="2 of its runs have not ended"):
            await batcher.submit(rows(1))
        assert len(shop.made) == 2
        for engine in shop.made:
            engine.released.set()
        await until(lambda: batcher._crew.broken is None)
        assert (await batcher.submit(rows(1)))["y"][0, 0] == 1


async def test_runs_that_can_be_ended_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then as many may hang, one after the other, as like."""
    monkeypatch.setattr(crew, "_ABANDONED_MOST", 2)
    monkeypatch.setattr(crew, "_REOPEN_S", (0.01,))
    ended: list[int | None] = []

    class Ending(EchoEngine):
        def interrupt(self, thread: int) -> None:
            ended.append(thread)
            self.released.set()

    def make() -> Engine:
        return Ending(ROWS, behaviour=Behaviour(hang_on=HANG))

    batcher = Batcher(make(), Meter("m", "1"), run_timeout_s=LONG_S, reopen=make)
    threads = []
    for _ in range(6):
        before = batcher.engine
        stuck = await hang(batcher)
        threads.append(batcher._crew._abandoned[-1].thread)
        with pytest.raises(DeadlineExceeded):
            await stuck
        await until(lambda was=before: batcher.engine is not was)  # type: ignore[misc]
        assert (await batcher.submit(rows(1)))["y"][0, 0] == 1
    assert {thread.ident for thread in threads} <= set(ended)
    for thread in threads:
        await asyncio.to_thread(thread.join, 60)
        assert not thread.is_alive()
    await batcher.close(60)


async def test_closing_while_it_hangs_and_while_it_is_replaced() -> None:
    gate, shop = threading.Event(), Shop()

    def reopen() -> Engine:
        assert gate.wait(60)
        return shop()

    batcher = Batcher(shop(), Meter("m", "1"), run_timeout_s=LONG_S, reopen=reopen)
    with pytest.raises(DeadlineExceeded):
        await (await hang(batcher))
    waits = asyncio.create_task(batcher.submit(rows(1)))
    await until(lambda: batcher.waiting_rows == 1)
    await batcher.close(0.05)
    with pytest.raises(Unavailable):
        await waits
    gate.set()
    await until(lambda: len(shop.closed) == 2)  # the one that came too late is closed as well
    shop.made[0].released.set()
