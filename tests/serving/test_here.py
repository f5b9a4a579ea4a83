"""Which runs the event loop does itself: of a lone request, on an engine whose runs are sure to be brief."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from app.domain.records import Signature, Tensor
from app.errors import Internal
from app.metrics import Meter
from app.runtimes import Arrays
from app.runtimes.echo import Behaviour, EchoEngine
from app.serving.batcher import Batcher
from app.serving.pace import Pace

ROWS = Signature(inputs=(Tensor(name="x", shape=(-1, 2)),), outputs=(Tensor(name="y", shape=(-1, 2)),))


class Steady(EchoEngine):
    """Writes down on which thread each run was done."""

    steady = True

    def __init__(self, **behaviour: Any) -> None:
        super().__init__(ROWS)
        self.behaviour = Behaviour(**behaviour)
        self.met = {1, 2}
        self.threads: list[threading.Thread] = []

    def infer(self, inputs: Arrays) -> dict[str, Any]:
        self.threads.append(threading.current_thread())
        return super().infer(inputs)

    @property
    def here(self) -> list[bool]:
        return [thread is threading.current_thread() for thread in self.threads]


class Measured(Pace):
    """What runs take is what the test says: no machine is too slow for it."""

    row_takes = 0.1e-3

    def ran(self, rows: int, started: float, ended: float, now: float) -> None:
        super().ran(rows, now - rows * self.row_takes, now, now)


def batching(engine: Steady, **options: Any) -> Batcher:
    batcher = Batcher(engine, Meter("m", "1"), **options)
    batcher.pace = Measured()
    return batcher


def row(value: float = 0.0, rows: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.full((rows, 2), value, np.float32)}


async def test_a_lone_request_needs_no_other_thread() -> None:
    engine = Steady()
    batcher = batching(engine)
    for value in range(4):
        assert (await batcher.submit(row(value)))["y"].tolist() == [[value, value]]
    assert engine.here == [False, True, True, True]  # how long a run takes is known after the first
    await batcher.close()


async def test_requests_that_come_together_are_a_batch_for_the_thread() -> None:
    engine = Steady()
    batcher = batching(engine)
    for _ in range(2):
        await batcher.submit(row())
    answers = await asyncio.gather(batcher.submit(row(1)), batcher.submit(row(2)))
    assert [a["y"][0, 0] for a in answers] == [1, 2]
    await batcher.submit(row())  # others came a moment ago, and may come again
    await batcher.submit(row())
    assert engine.here == [False, True, False, False, True]
    await batcher.close()


async def test_only_where_a_run_is_sure_to_be_brief() -> None:
    engine = Steady()
    batcher = batching(engine)
    for rows in (1, 1, 2, 3):  # three rows were never run before: the first time may take long
        await batcher.submit(row(rows=rows))
    assert engine.here == [False, True, True, False]
    await batcher.close()

    engine = Steady()
    batcher = batching(engine)
    batcher.pace.row_takes = 0.6e-3  # type: ignore[attr-defined]
    for rows in (1, 1, 2):
        await batcher.submit(row(rows=rows))
    assert engine.here == [False, True, False]
    await batcher.close()

    engine = Steady()
    engine.steady = False
    batcher = batching(engine)
    for _ in range(3):
        await batcher.submit(row())
    assert engine.here == [False] * 3
    await batcher.close()


async def test_a_run_on_the_loop_that_fails_fails_its_request_alone() -> None:
    engine = Steady(raise_on=7.0)
    batcher = batching(engine)
    for _ in range(2):
        await batcher.submit(row())
    with pytest.raises(Internal, match="the engine failed"):
        await batcher.submit(row(7))
    assert (await batcher.submit(row(5)))["y"].tolist() == [[5, 5]]
    assert batcher.running == batcher.waiting_rows == 0
    await batcher.close()
