"""More models than memory: the one asked least recently gives way, and comes back when it is asked."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.errors import DeadlineExceeded, NotFound, Unavailable
from app.memory import private_bytes, trim
from app.serving.place import Place
from app.settings import Settings
from app.storage.artifacts import Artifacts

from .conftest import Publish, Serve
from .test_deployments import answered, ask, put, settle

MiB = 1024 * 1024
# The engines are tiny and say that they are large: far above what a process grows by otherwise.
LARGE = 1024 * MiB


@pytest.fixture
def two(settings: Settings) -> Settings:
    """Room for two of the engines."""
    return settings.model_copy(update={"engine_memory_bytes": int(2.9 * LARGE), "poll_s": 0.2})


def place(app: FastAPI, name: str) -> Place:
    found: Place = app.state.fleet._places[name]
    return found


def loaded(app: FastAPI) -> set[str]:
    return {p.name for p in app.state.fleet.places() if p.main is not None}


@asynccontextmanager
async def nothing_loads(app: FastAPI) -> AsyncIterator[None]:
    """Holds the turn that every loading takes."""
    async with app.state.fleet._loading.budget.turn:
        yield


async def three(client: httpx.AsyncClient, publish: Publish) -> None:
    for i, name in enumerate("abc", 1):
        publish(name, factor=i, bytes=LARGE)
        assert (await put(client, name, name=name)).json()["status"] == "ready"


async def test_the_one_asked_least_recently_gives_way(two: Settings, publish: Publish, serve: Serve) -> None:
    async with serve(two) as (app, client):
        for i, name in enumerate("ab", 1):
            publish(name, factor=i, bytes=LARGE)
            await put(client, name, name=name)
        assert await answered(client, "a") == ("a@1", 1.0)
        publish("c", factor=3, bytes=LARGE)
        assert (await put(client, "c", name="c")).json()["status"] == "ready"
        assert loaded(app) == {"a", "c"}
        sleeping = await settle(client, "asleep", "b")
        assert (sleeping["model"], sleeping["replicas"][0]["serving"], sleeping["error"]) == ("b@1", None, None)
        assert app.state.fleet.served("b") == ["1"]
        # It is served as wanted: a request has it loaded.
        assert (await client.get("/healthz/ready")).status_code == 200
        assert (await client.get("/healthz/serving")).status_code == 200
        text = (await client.get("/metrics")).text
        assert 'enginesmith_deployment_ready{deployment="b"} 1' in text
        assert 'enginesmith_deployment_loaded{deployment="b"} 0' in text
        assert 'enginesmith_engine_memory_bytes{deployment="b"} 0' in text
        assert f'enginesmith_engine_memory_bytes{{deployment="c"}} {LARGE}' in text
        assert f"enginesmith_engine_memory_limit_bytes {two.engine_memory_bytes}" in text
        assert await answered(client, "c") == ("c@1", 3.0)
        assert await answered(client, "b") == ("b@1", 2.0)
        assert loaded(app) == {"b", "c"}
        await settle(client, "ready", "b")
        with pytest.raises(NotFound, match="'7'"):
            await app.state.fleet.find("a", "7")
        assert loaded(app) == {"b", "c"}  # not loaded for a version that it has not
        # A deployment that sleeps can be changed and deleted like any other.
        assert (await client.delete("/v1/deployments/a")).status_code == 204
        assert (await ask(client, "a")).status_code == 404


async def test_many_who_ask_at_once_cause_one_load(two: Settings, publish: Publish, serve: Serve) -> None:
    async with serve(two) as (app, client):
        await three(client, publish)
        before = place(app, "a").loads
        answers = await asyncio.gather(*(ask(client, "a", value=i) for i in range(20)))
        assert [a.json()["outputs"]["logits"][0][0] for a in answers] == list(range(20))
        assert place(app, "a").loads == before + 1


async def test_those_who_wait_are_bounded(two: Settings, publish: Publish, serve: Serve) -> None:
    async with serve(two.model_copy(update={"wake_queue": 3})) as (app, client):
        await three(client, publish)
        async with nothing_loads(app):
            waiting = [asyncio.create_task(ask(client, "a")) for _ in range(3)]
            async with asyncio.timeout(30):
                while place(app, "a").waiting < 3:
                    await asyncio.sleep(0.005)
            refused = await ask(client, "a")
            assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            assert await answered(client, "b") == ("b@1", 2.0)  # others go on
            waiting[0].cancel()  # whoever goes away frees a seat
            await asyncio.wait(waiting[:1])
            assert place(app, "a").waiting == 2
            with pytest.raises(DeadlineExceeded):
                await app.state.fleet.find("a", deadline=0.0)
        assert {(await task).status_code for task in waiting[1:]} == {200}
        assert place(app, "a").waiting == 0


async def test_nobody_waits_for_ever(two: Settings, publish: Publish, serve: Serve) -> None:
    async with serve(two.model_copy(update={"wake_patience_s": 0.1})) as (app, client):
        await three(client, publish)
        async with nothing_loads(app):
            refused = await ask(client, "a")
            assert (refused.status_code, refused.json()["code"]) == (503, "deployment_loading")
            assert int(refused.headers["retry-after"]) >= 1
        async with asyncio.timeout(30):
            while (await ask(client, "a")).status_code != 200:
                await asyncio.sleep(0.01)


async def test_what_does_not_fit_even_alone(two: Settings, publish: Publish, serve: Serve) -> None:
    async with serve(two) as (app, client):
        publish("a", bytes=LARGE)
        publish("huge", bytes=3 * LARGE)
        await put(client, "a", name="a")
        failed = (await put(client, "huge", name="huge")).json()
        assert (failed["status"], failed["error"]["code"]) == ("failed", "over_memory_budget")
        assert str(3 * LARGE) in failed["error"]["detail"]
        assert str(two.engine_memory_bytes) in failed["error"]["detail"]
        assert loaded(app) == {"a"}
        refused = await ask(client, "huge")
        assert (refused.status_code, refused.json()["code"]) == (503, "deployment_failed")
        # Nor does a version of its own beside it, where the deployment had room before.
        publish("a", factor=2, bytes=3 * LARGE)
        assert (await put(client, "a@2", name="a")).json()["status"] == "failed"
        assert await answered(client, "a") == ("a@1", 1.0)


async def test_a_swap_goes_on_though_there_is_only_room_for_one(
    settings: Settings, publish: Publish, serve: Serve
) -> None:
    one = settings.model_copy(update={"engine_memory_bytes": int(1.5 * LARGE)})
    async with serve(one) as (app, client):
        publish("a", factor=1, bytes=LARGE)
        publish("a", factor=2, bytes=LARGE)
        await put(client, "a@1", name="a")
        assert (await put(client, "a@2", name="a")).json()["status"] == "ready"
        assert await answered(client, "a") == ("a@2", 2.0)
        # Two that fit one at a time: each is answered, however they take turns.
        publish("b", factor=3, bytes=LARGE)
        await put(client, "b", name="b")
        for _ in range(3):
            assert await answered(client, "a") == ("a@2", 2.0)
            assert await answered(client, "b") == ("b@1", 3.0)
        budget = app.state.fleet._loading.budget
        async with asyncio.timeout(30):
            while budget.used > LARGE:
                await asyncio.sleep(0.01)


async def test_a_restart_loads_what_fits_and_serves_all(two: Settings, publish: Publish, serve: Serve) -> None:
    async with serve(two) as (_, client):
        await three(client, publish)
    async with serve(two) as (app, client):
        async with asyncio.timeout(30):
            while (await client.get("/healthz/ready")).status_code != 200:
                await asyncio.sleep(0.02)
        assert len(loaded(app)) == 2
        assert sum(p.loads for p in app.state.fleet.places()) == 2
        for i, name in enumerate("abc", 1):
            assert await answered(client, name) == (f"{name}@1", float(i))


async def test_an_old_version_that_serves_after_a_failed_swap_wakes_too(
    two: Settings, publish: Publish, serve: Serve, artifacts: Artifacts
) -> None:
    async with serve(two) as (app, client):
        publish("a", factor=1, bytes=LARGE)
        broken = publish("a", factor=9, bytes=LARGE)
        artifacts.put_bytes(b"damaged", f"{broken.folder}/model.onnx")
        await put(client, "a@1", name="a")
        assert (await put(client, "a@2", name="a")).json()["status"] == "failed"
        for name in "bc":
            publish(name, bytes=LARGE)
            await put(client, name, name=name)
        assert loaded(app) == {"b", "c"}
        assert (await settle(client, "failed", "a"))["replicas"][0]["serving"] is None
        assert await answered(client, "a") == ("a@1", 1.0)
        assert (await client.get("/healthz/ready")).status_code == 503


async def test_what_does_not_wake_says_so_and_is_tried_again(
    two: Settings, publish: Publish, serve: Serve, artifacts: Artifacts
) -> None:
    async with serve(two) as (app, client):
        await three(client, publish)
        version = app.state.catalog.version("a", 1)
        good = artifacts.get_bytes(f"{version.folder}/model.onnx")
        async with nothing_loads(app):
            (two.scratch / "engines" / "a@1" / "model.onnx").write_bytes(b"damaged")
            artifacts.put_bytes(b"damaged", f"{version.folder}/model.onnx")
        refused = await ask(client, "a")
        assert (refused.status_code, refused.json()["code"]) == (503, "deployment_failed")
        assert (await client.get("/healthz/ready")).status_code == 503
        artifacts.put_bytes(good, f"{version.folder}/model.onnx")
        async with asyncio.timeout(60):
            while (await ask(client, "a")).status_code != 200:
                await asyncio.sleep(0.05)


async def test_without_a_bound_nothing_sleeps(client: httpx.AsyncClient, app: FastAPI, publish: Publish) -> None:
    await three(client, publish)
    assert loaded(app) == {"a", "b", "c"}


def kept() -> int:
    """What this process really needs: what others have freed is given back first, before and after alike."""
    gc.collect()
    trim()
    found = private_bytes()
    assert found is not None
    return found


@pytest.mark.slow
@pytest.mark.skipif(private_bytes() is None, reason="needs /proc")
async def test_memory_returns(client: httpx.AsyncClient, app: FastAPI, publish: Publish) -> None:
    size = 192 * MiB  # far more than anything else in this process comes and goes with
    publish("tiny")
    await put(client, "tiny", name="tiny")  # the library itself stays
    await answered(client, "tiny")
    publish("heavy", factor=2, ballast=size)
    before, after = kept(), []
    for _ in range(3):
        assert (await put(client, "heavy", name="heavy")).json()["status"] == "ready"
        assert await answered(client, "heavy") == ("heavy@1", 2.0)
        assert kept() - (after or [before])[-1] > size * 0.6
        metrics = (await client.get("/metrics")).text
        held = next(
            line
            for line in metrics.splitlines()
            if line.startswith("enginesmith_engine_memory_bytes{") and "hea" in line
        )
        assert int(held.rpartition(" ")[2]) >= size
        await client.delete("/v1/deployments/heavy")
        async with asyncio.timeout(30):
            while app.state.fleet._loading.draining:
                await asyncio.sleep(0.01)
        after.append(kept())
    # What the first round leaves behind may be the allocator's; what every round leaves would be lost.
    assert after[0] - before < size * 0.7
    assert after[-1] - after[0] < size * 0.4


async def test_absence_before_the_first_load_is_not_sleep(app: FastAPI) -> None:
    with pytest.raises(NotFound):
        await app.state.fleet.find("nothing", patience_s=0.0)
    error: Any = None
    try:
        app.state.fleet.lane("nothing")
    except (NotFound, Unavailable) as found:
        error = found
    assert error.code == "deployment_not_found"
    assert app.state.fleet.served("nothing") == []
