"""Fronts and the host of the engines, in one event loop over a real unix socket: the same answers, errors and lanes as
from a fleet in the same process; and what happens when one end goes away."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from app.domain.deployments import Canary, Deployment
from app.domain.records import Version, now
from app.errors import BadTensor, DeadlineExceeded, NotFound, TooLarge, Unavailable
from app.queue import Queue
from app.serving.apart import frames
from app.serving.apart.front import FrontFleet
from app.serving.apart.host import Host
from app.serving.batcher import Stages
from app.serving.fleet import Fleet
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog

Publish = Callable[..., Version]
X = np.array([[1, 2, 3]], np.float32)


@pytest.fixture
async def fleet(settings: Settings, catalog: Catalog, artifacts: Artifacts) -> AsyncIterator[Fleet]:
    made = Fleet(settings, catalog, artifacts, Queue(settings.redis_url or ""))
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def host(fleet: Fleet, tmp_path: Path) -> AsyncIterator[Host]:
    made = Host(fleet)
    await made.start(tmp_path / "e.sock")
    yield made
    await made.stop()


@pytest.fixture
async def front(host: Host, tmp_path: Path) -> AsyncIterator[FrontFleet]:
    made = FrontFleet(tmp_path / "e.sock", lambda: b"")
    await made.start()
    await until(lambda: made.known)
    yield made
    await made.stop()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


def deploy(catalog: Catalog, model: str, name: str = "web", **fields: object) -> None:
    try:
        before: Deployment | None = catalog.deployment(name)
    except NotFound:
        before = None
    at = now()
    wanted = Deployment.model_validate(
        {"name": name, "model": model, "created_at": before.created_at if before else at, "updated_at": at}
        | {"generation": before.generation + 1 if before else 1}
        | fields
    )
    catalog.put_deployment(wanted, was_generation=before.generation if before else None)


async def test_answers_and_stages(front: FrontFleet, publish: Publish, catalog: Catalog) -> None:
    publish(factor=2.0)
    deploy(catalog, "net@1")
    lane = await front.find("web", patience_s=60)
    stages = Stages()
    outputs = await lane.infer({"x": X}, stages=stages)
    np.testing.assert_array_equal(outputs["logits"], 2 * X)
    assert 0 < stages.came <= stages.started <= stages.gathered <= stages.ended <= stages.answered <= time.monotonic()
    assert (stages.rows, stages.requests) == (1, 1)
    many = await asyncio.gather(*(lane.infer({"x": X * i}) for i in range(200)))
    for i, found in enumerate(many):
        np.testing.assert_array_equal(found["logits"], 2 * X * i)
    assert front.served("web") == ["1"]
    assert (await front.statistics())[0]["inference_count"] == 201


async def test_a_large_request_crosses_whole(front: FrontFleet, publish: Publish, catalog: Catalog) -> None:
    publish(factor=0.5)
    deploy(catalog, "net@1", max_batch=65536)
    lane = await front.find("web", patience_s=60)
    rows = np.random.default_rng(0).standard_normal((60_000, 3)).astype(np.float32)
    np.testing.assert_array_equal((await lane.infer({"x": rows}))["logits"], rows * np.float32(0.5))


async def test_any_number_crosses(front: FrontFleet, publish: Publish, catalog: Catalog) -> None:
    publish(factor=2.0)
    deploy(catalog, "net@1")
    lane = await front.find("web", patience_s=60)
    for priority in (0, 1, 255, 256, 2**32, 2**64 - 1):
        for deadline in (None, time.monotonic() + 3600, 1e300):
            found = await lane.infer({"x": X}, priority=priority, deadline=deadline)
            np.testing.assert_array_equal(found["logits"], 2 * X)


async def test_what_no_frame_holds_is_refused_alone(
    front: FrontFleet, publish: Publish, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    deploy(catalog, "net@1")
    lane = await front.find("web", patience_s=60)
    running = [asyncio.create_task(lane.infer({"x": X})) for _ in range(4)]
    monkeypatch.setattr(frames, "LARGEST", 256)
    with pytest.raises(TooLarge, match="at most 256"):
        await lane.infer({"x": np.zeros((60, 3), np.float32)})
    monkeypatch.undo()
    for answer in running:
        np.testing.assert_array_equal((await answer)["logits"], X)
    assert not lane._pipe.waiting


async def test_numbers_of_lanes_begin_anew(
    front: FrontFleet, host: Host, publish: Publish, catalog: Catalog, fleet: Fleet
) -> None:
    publish(factor=1.0)
    publish(factor=2.0)
    host._count = itertools.cycle((1, 2, 3))
    for number in range(8):
        deploy(catalog, f"net@{number % 2 + 1}")
        fleet.nudge()
        await until(lambda wanted=number % 2 + 1: front.served("web") == [str(wanted)])  # type: ignore[misc]
        found = await (await front.find("web", patience_s=60)).infer({"x": X})  # it is told of before it is loaded
        np.testing.assert_array_equal(found["logits"], X * (number % 2 + 1))


async def test_errors_keep_their_kind(front: FrontFleet, publish: Publish, catalog: Catalog) -> None:
    publish()
    deploy(catalog, "net@1")
    lane = await front.find("web", patience_s=60)
    with pytest.raises(BadTensor, match="max_batch is 8"):
        await lane.infer({"x": np.zeros((9, 3), np.float32)})
    with pytest.raises(DeadlineExceeded):
        await lane.infer({"x": X}, deadline=time.monotonic() - 1)
    with pytest.raises(NotFound) as missing:
        front.lane("web", "7")
    assert missing.value.code == "version_not_served"
    with pytest.raises(NotFound):
        await front.find("nobody")


async def test_a_swap_is_seen_before_the_old_lane_goes(front: FrontFleet, publish: Publish, catalog: Catalog) -> None:
    publish(factor=1.0)
    publish(factor=2.0)
    deploy(catalog, "net@1")
    await front.find("web", patience_s=60)
    swapped = asyncio.Event()

    async def ask() -> set[float]:
        found = set()
        while not (swapped.is_set() and 2.0 in found):
            with contextlib.suppress(Unavailable):  # once, as the routes do
                found.add(float((await front.lane("web").infer({"x": X}))["logits"][0, 0]))
                continue
            found.add(float((await front.lane("web").infer({"x": X}))["logits"][0, 0]))
        return found

    asking = [asyncio.create_task(ask()) for _ in range(8)]
    for model in ("net@2", "net@1", "net@2"):
        deploy(catalog, model)
        front.nudge()
        await until(lambda model=model: front.lane("web").version.ref == model)  # type: ignore[misc]
    swapped.set()
    assert set.union(*await asyncio.gather(*asking)) <= {1.0, 2.0}


async def test_a_canary_gets_its_share(front: FrontFleet, publish: Publish, catalog: Catalog) -> None:
    publish()
    publish()
    deploy(catalog, "net@1", canary=Canary(model="net@2", percent=50))
    await front.find("web", patience_s=60)
    await until(lambda: front.served("web") == ["1", "2"])
    assert {front.lane("web").version.ref for _ in range(200)} == {"net@1", "net@2"}
    assert front.lane("web", "2").version.ref == "net@2"


async def test_a_canary_is_blamed_and_the_main_version_beside_it_is_known(
    front: FrontFleet, fleet: Fleet, publish: Publish, catalog: Catalog
) -> None:
    publish()
    publish()
    deploy(catalog, "net@1", canary=Canary(model="net@2", percent=100, max_error_rate=0, min_requests=2))
    await front.find("web", patience_s=60)
    await until(lambda: front.served("web") == ["1", "2"])
    canary, main = front.lane("web", "2"), front.lane("web", "1")
    assert front.main_beside("web", canary) is main
    assert front.main_beside("web", main) is None
    assert front.main_beside("nobody", canary) is None
    for _ in range(2):
        canary.blame()
    await until(lambda: catalog.deployment("web").returned is not None)
    await until(lambda: front.served("web") == ["1"])


async def test_how_versions_stand_crosses(
    front: FrontFleet, fleet: Fleet, publish: Publish, catalog: Catalog, artifacts: Artifacts
) -> None:
    publish()
    broken = publish()
    artifacts.put_bytes(b"damaged", f"{broken.folder}/model.onnx")
    deploy(catalog, "net@2", "never")
    deploy(catalog, "net@1")
    await front.find("web", patience_s=60)
    await until(lambda: "failed" in front.missing().get("never", ""))
    assert front.standing("web") == [("1", "READY", "")]
    assert [told[:2] for told in front.standing("never")] == [("2", "UNAVAILABLE")]
    assert front.standing("nobody") == []
    assert (front.unserved(), front.owed()) == (["never"], [])


async def test_a_cancelled_request_leaves_the_queue(
    front: FrontFleet, fleet: Fleet, publish: Publish, catalog: Catalog
) -> None:
    publish()
    deploy(catalog, "net@1", max_delay_ms=10_000, max_batch=8)
    lane = await front.find("web", patience_s=60)
    asking = asyncio.create_task(lane.infer({"x": X}))
    meter = fleet.lane("web").batcher.meter
    await until(lambda: fleet.lane("web").batcher.waiting_rows == 1)
    asking.cancel()
    await until(lambda: fleet.lane("web").batcher.waiting_rows == 0)
    assert meter.failed["CANCELED"] == 1


async def test_a_host_that_goes_and_comes_back(
    front: FrontFleet, host: Host, fleet: Fleet, publish: Publish, catalog: Catalog, tmp_path: Path
) -> None:
    publish()
    deploy(catalog, "net@1", max_delay_ms=10_000)
    lane = await front.find("web", patience_s=60)
    asking = asyncio.create_task(lane.infer({"x": X}))
    await until(lambda: fleet.lane("web").batcher.waiting_rows == 1)
    await host.stop()
    with pytest.raises(Unavailable) as gone:
        await asking
    assert gone.value.code == "engines_gone"
    assert front.missing() == {"engines": "their process is not there"}
    with pytest.raises(Unavailable):
        front.lane("web")
    again = Host(fleet)
    await again.start(tmp_path / "e.sock")
    await until(lambda: front.known)
    assert (await front.find("web", patience_s=60)).version.ref == "net@1"
    await again.stop()


async def test_a_front_that_goes_takes_its_requests_along(
    front: FrontFleet, fleet: Fleet, publish: Publish, catalog: Catalog
) -> None:
    publish()
    deploy(catalog, "net@1", max_delay_ms=10_000)
    lane = await front.find("web", patience_s=60)
    asking = asyncio.create_task(lane.infer({"x": X}))
    await until(lambda: fleet.lane("web").batcher.waiting_rows == 1)
    await front.stop()
    await until(lambda: fleet.lane("web").batcher.waiting_rows == 0)
    with pytest.raises(Unavailable):
        await asking
