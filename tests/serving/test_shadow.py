"""Shadows: asked after the client has its answer, compared, counted, and never in anybody's way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from app.domain.records import Made, Signature, Tensor, Version, now
from app.metrics import KEPT_S, Meter
from app.runtimes import Arrays
from app.runtimes.echo import EchoEngine
from app.serving import shadow
from app.serving.lane import Lane, Plan
from app.serving.place import Place
from app.serving.shadow import Difference, Mirror, Tally, compare

from .conftest import Publish
from .test_deployments import answered, ask, put

ROWS = Signature(inputs=(Tensor(name="x", shape=(-1, 2)),), outputs=(Tensor(name="y", shape=(-1, 2)),))


class Gated(EchoEngine):
    """An echo whose runs wait for the test to let them through."""

    def __init__(self) -> None:
        super().__init__(ROWS)
        self.gate = threading.Semaphore(0)

    def infer(self, inputs: Arrays) -> dict[str, Any]:
        assert self.gate.acquire(timeout=60)
        return super().infer(inputs)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def mirroring(engine: EchoEngine, percent: float = 100, max_queue: int = 1024) -> AsyncIterator[Mirror]:
    version = Version(
        name="net",
        version=2,
        format="onnxruntime",
        folder="f",
        files={},
        bytes=1,
        signature=ROWS,
        made_by=Made(job="j", spec={}),
        created_at=now(),
    )
    lane = Lane(Plan(version.ref, 1, 1, 0.0, max_queue), version, engine, Meter("web", "2"))
    threads = ThreadPoolExecutor(1)
    mirror = Mirror(lane, percent, Tally(), threads)
    yield mirror
    mirror.stop()
    if isinstance(engine, Gated):
        engine.gate.release(1000)
    await lane.close(30)
    threads.shutdown()


def given(value: float, rows: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.full((rows, 2), value, np.float32)}


def answer(value: float, rows: int = 1) -> dict[str, np.ndarray]:
    return {"y": np.full((rows, 2), value, np.float32)}


def test_what_is_compared() -> None:
    ours = {"scores": np.array([[0.1, 0.9], [0.8, 0.2]], np.float32), "other": np.array([1, 2], np.int64)}
    same = compare(ours, {k: v.copy() for k, v in ours.items()})
    assert same == Difference(rows=2, agreed=2, max_abs=0.0, not_finite=0)
    apart = compare(ours, {"scores": np.array([[0.9, 0.1], [0.8, 0.2]], np.float32), "more": ours["other"]})
    assert (apart.rows, apart.agreed, apart.not_finite) == (2, 1, 0)
    assert apart.max_abs == pytest.approx(0.8)
    assert compare({"a": np.array([1, 5])}, {"a": np.array([1, 2])}) == Difference(0, None, 3.0, 0)
    words = np.array(["x"], object)
    assert compare({"a": words}, {"a": words}) == Difference(0, None, 0.0, 0)
    empty = np.zeros((0, 2), np.float32)
    assert compare({"a": empty}, {"a": empty}) == Difference(0, None, 0.0, 0)


def test_numbers_that_are_not_finite() -> None:
    nan, inf = np.nan, np.inf
    ours = {"a": np.array([nan, inf, 1.0, -inf, 2.0], np.float32)}
    assert compare(ours, ours).not_finite == 0
    found = compare(ours, {"a": np.array([nan, 3.0, nan, inf, 2.5], np.float32)})
    assert (found.not_finite, found.max_abs) == (3, 0.5)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="no output in common"):
        compare({"a": np.zeros(1)}, {"b": np.zeros(1)})
    with pytest.raises(ValueError, match="shape"):
        compare({"a": np.zeros((1, 2))}, {"a": np.zeros((1, 3))})


async def test_copies_are_compared_and_counted() -> None:
    async with mirroring(EchoEngine(ROWS)) as mirror:
        mirror.take(given(3), answer(3))
        mirror.take(given(5), answer(4.5))
        tally = mirror.tally
        assert tally.compared == 0  # nothing happens before the caller goes on
        await until(lambda: tally.compared == 2)
        assert (tally.max_abs, tally.rows, tally.agreed, tally.failed, tally.dropped) == (0.5, 2, 2, 0, 0)
        many = np.zeros((50_000, 2), np.float32)
        mirror.lane.batcher.max_batch = 50_000
        mirror.take({"x": many}, {"y": many + 1})  # compared in a thread
        await until(lambda: tally.failed + tally.compared == 3)


async def test_a_share_of_the_requests() -> None:
    async with mirroring(EchoEngine(ROWS), percent=0) as mirror:
        for _ in range(50):
            mirror.take(given(1), answer(1))
        assert mirror.tally == Tally()
        assert not mirror._flying


async def test_what_the_shadow_cannot_keep_up_with_is_dropped() -> None:
    engine = Gated()
    async with mirroring(engine) as mirror:
        for _ in range(100):
            mirror.take(given(1), answer(1))
        assert mirror.tally.dropped == 100 - shadow._MOST
        engine.gate.release(1000)
        await until(lambda: mirror.tally.compared == shadow._MOST)
        mirror.take(given(1), answer(1))
        await until(lambda: mirror.tally.compared == shadow._MOST + 1)


async def test_copies_in_flight_are_bounded_in_bytes() -> None:
    engine = Gated()
    async with mirroring(engine) as mirror:
        rows = shadow._MOST_BYTES // 8 // 2 + 1  # half of what may be held, with as much for the answer
        mirror.take(given(1, rows), answer(1, rows))  # one alone may be larger
        mirror.take(given(1), answer(1))
        assert mirror.tally.dropped == 1
        await until(lambda: mirror.tally.failed == 1)  # more rows than its max_batch
        mirror.take(given(1), answer(1))
        engine.gate.release(1)
        await until(lambda: mirror.tally.compared == 1)


async def test_its_full_queue_and_its_end_are_no_failures() -> None:
    engine = Gated()
    async with mirroring(engine, max_queue=1) as mirror:
        for _ in range(6):
            mirror.take(given(1), answer(1))
        await until(lambda: mirror.tally.dropped > 0)
        mirror.stop()
        await until(lambda: not mirror._flying)
        assert mirror.tally.failed == 0
        mirror.take(given(1), answer(1))
        closing = asyncio.create_task(mirror.lane.close(30))
        engine.gate.release(1000)
        await closing
        mirror.take(given(1), answer(1))
        await until(lambda: not mirror._flying)
        assert mirror.tally.failed == 0


async def test_a_shadow_over_http(app: FastAPI, client: httpx.AsyncClient, publish: Publish) -> None:
    publish(factor=1)
    publish(factor=-2)
    made = await put(client, "net@1", shadow={"model": "net@2"})
    assert (made.json()["status"], made.json()["shadow"]) == ("ready", {"model": "net@2", "percent": 100})
    body = {"inputs": [[1, 0, 0], [3, 0, 0]]}
    for _ in range(5):
        response = await client.post("/predict/web", json=body)
        assert (response.json()["model"], response.json()["outputs"]["logits"][1][0]) == ("net@1", 3.0)
    assert app.state.fleet.served("web") == ["1"]  # nobody can ask it
    at = 'deployment="web",model="net@2"'
    async with asyncio.timeout(30):
        while f'shadow_requests_total{{{at},outcome="compared"}} 5' not in (
            text := (await client.get("/metrics")).text
        ):
            await asyncio.sleep(0.01)
    assert f"enginesmith_shadow_max_abs_diff{{{at}}} 9.0" in text
    assert f"enginesmith_shadow_rows_total{{{at}}} 10" in text
    assert f"enginesmith_shadow_rows_agreed_total{{{at}}} 0" in text
    # What nobody asked for is not among what was served.
    assert 'nv_inference_request_success{model="web",version="1"} 5' in text
    assert 'version="2"' not in text
    busy = await client.delete("/v1/models/net/versions/2")
    assert (busy.status_code, busy.json()["code"]) == (409, "deployed")
    dropped = (await put(client, "net@1")).json()
    assert (dropped["shadow"], dropped["status"]) == (None, "ready")


async def test_a_shadow_that_fails_is_only_counted(client: httpx.AsyncClient, publish: Publish) -> None:
    publish(factor=1)
    publish(factor=2, fragile=True)
    await put(client, "net@1", shadow={"model": "net@2", "percent": 100})
    for _ in range(3):
        assert (await ask(client, value=200.0)).json()["outputs"] == {"logits": [[200, 0, 0]]}
    counted = 'enginesmith_shadow_requests_total{deployment="web",model="net@2",outcome="failed"} 3'
    async with asyncio.timeout(30):
        while counted not in (await client.get("/metrics")).text:
            await asyncio.sleep(0.01)
    assert await answered(client) == ("net@1", 1.0)
    back = await client.put("/v1/deployments/web", json={"model": "net@2"}, headers={"Prefer": "wait=20"})
    assert (back.json()["previous"], back.json()["shadow"]) == ("net@1", None)
    assert (await client.post("/v1/deployments/web/rollback")).json()["shadow"] is None


async def test_figures_begin_anew_when_something_else_is_compared(
    app: FastAPI, client: httpx.AsyncClient, publish: Publish
) -> None:
    for factor in (1, 3, 4):
        publish(factor=factor)

    def place() -> Place:
        (found,) = app.state.fleet.places()
        return found

    async def compared(most: float) -> None:
        """Asks three times, and waits until they are compared, and nothing else ever was."""
        for _ in range(3):
            await answered(client)
        await until(lambda: place().mirror.tally.compared == 3)
        assert place().mirror.tally.max_abs == most
        assert place().figures()["shadow"]["compared"] == 3

    shadow = {"model": "net@2", "percent": 100}
    await put(client, "net@1", shadow=shadow)
    await compared(2)
    await put(client, "net@1", shadow=shadow | {"percent": 99.9999999}, max_queue=77)  # of the same two versions
    assert place().mirror.tally.compared == 3
    await put(client, "net@3", shadow=shadow)
    assert place().mirror.tally.compared == 0
    await compared(1)
    await put(client, "net@3")
    await put(client, "net@3", shadow=shadow)
    await compared(1)
    await client.delete("/v1/deployments/web")
    await put(client, "net@3", shadow=shadow)
    await compared(1)
    await put(client, "net@3", shadow={"model": "net@1"})
    await compared(3)


async def test_sleep_keeps_the_figures(app: FastAPI, client: httpx.AsyncClient, publish: Publish) -> None:
    for factor in (1, 3):
        publish(factor=factor)
    await put(client, "net@1", shadow={"model": "net@2"})
    await answered(client)
    (place,) = app.state.fleet.places()
    await until(lambda: place.mirror.tally.compared == 1)
    app.state.fleet._loading.drain(place.give_up(asleep=True))
    await answered(client)
    await until(lambda: place.mirror.tally.compared == 2)


def test_a_tally_is_told_for_a_while_after_its_shadow() -> None:
    tally = Tally()
    assert not tally.is_over(False, 100.0)
    assert not tally.is_over(True, 100.0 + KEPT_S)  # back again
    assert not tally.is_over(False, 200.0 + KEPT_S)
    assert not tally.is_over(False, 199.0 + 2 * KEPT_S)
    assert tally.is_over(False, 200.0 + 2 * KEPT_S)
