"""A lane: the plan becomes a batcher's bounds, whoever uses it holds it, and an engine that hangs is opened again."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from app.domain.records import Made, Signature, Tensor, Version, now
from app.errors import BadTensor, DeadlineExceeded, Unavailable
from app.metrics import Meter
from app.runtimes.echo import Behaviour, EchoEngine
from app.serving.batcher import RUN_TIMEOUT_S, Stages
from app.serving.lane import Lane, Plan, default_max_batch

ROWS = Signature(inputs=(Tensor(name="x", shape=(-1, 2)),), outputs=(Tensor(name="y", shape=(-1, 2)),))
PLAN = Plan("net@1", 1, None, 0.0, 100)
HANG = 666.0


def version(**details: Any) -> Version:
    return Version.model_validate(
        {
            "name": "net",
            "version": 1,
            "format": "onnxruntime",
            "folder": "f",
            "files": {},
            "bytes": 0,
            "signature": ROWS,
            "made_by": Made(job="j", spec={}),
            "details": details,
            "created_at": now(),
        }
    )


def rows(n: int, value: float = 0.0) -> dict[str, np.ndarray]:
    return {"x": np.full((n, 2), value, np.float32)}


@pytest.mark.parametrize(("details", "most"), [({}, 64), ({"max_batch": 7}, 7), ({"max_batch": 0}, 64)])
def test_the_largest_batch_is_what_the_engine_was_built_for(details: dict[str, Any], most: int) -> None:
    assert default_max_batch(version(**details)) == most


async def test_the_plan_says_how_it_is_served() -> None:
    lane = Lane(PLAN._replace(max_batch=3, max_queue=9, instances=2), version(), EchoEngine(ROWS), Meter("web", "1"))
    assert (lane.batcher.max_batch, lane.batcher.max_queue, lane.batcher.instances) == (3, 9, 2)
    with pytest.raises(BadTensor, match="max_batch is 3"):
        await lane.infer(rows(4))
    stages = Stages()
    found = await lane.infer(rows(2, 5), deadline=time.monotonic() + 100, priority=1, stages=stages)
    np.testing.assert_array_equal(found["y"], rows(2, 5)["x"])
    assert (stages.rows, stages.requests) == (2, 1)
    await lane.close(60)
    with pytest.raises(Unavailable):
        await lane.infer(rows(1))


async def test_who_uses_it_holds_it() -> None:
    lane = Lane(PLAN, version(), EchoEngine(ROWS), Meter("web", "1"))
    with lane:
        closing = asyncio.create_task(lane.close(60))
        await asyncio.sleep(0)
        assert (await lane.infer(rows(1, 3)))["y"][0, 0] == 3
        assert not closing.done()
    await closing


async def test_an_engine_that_hangs_is_opened_again() -> None:
    first = EchoEngine(ROWS, behaviour=Behaviour(hang_on=HANG))
    lane = Lane(PLAN._replace(run_timeout_s=0.05), version(), first, Meter("web", "1"), lambda: EchoEngine(ROWS))
    with pytest.raises(DeadlineExceeded) as caught:
        await lane.infer(rows(1, HANG))
    assert caught.value.code == "engine_hung"
    async with asyncio.timeout(60):
        while lane.batcher.engine is first:
            await asyncio.sleep(0.001)
    first.released.set()
    await lane.close(60)


async def test_without_a_word_a_run_has_half_a_minute() -> None:
    lane = Lane(PLAN, version(), EchoEngine(ROWS), Meter("web", "1"))
    assert lane.batcher._crew._run_timeout_s == RUN_TIMEOUT_S == 30
    await lane.close(60)
