"""Several replicas on one Redis, which never speak to each other: what one is told, all serve."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from app.domain.deployments import Deployment
from app.embedded import EmbeddedStore
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.registry import reindex

from .conftest import Publish, Serve
from .test_deployments import answered, ask, put, settle


@pytest.fixture
def pair(settings: Settings, tmp_path: Path) -> tuple[Settings, Settings]:
    """Two replicas: one Redis, one artifact store, a folder each."""
    one = settings.model_copy(update={"poll_s": 0.1})
    return one, one.model_copy(update={"data": tmp_path / "other", "store_url": settings.artifacts_url})


async def becomes(client: httpx.AsyncClient, expected: tuple[str, float] | int, name: str = "web") -> None:
    """Waits for an answer of that version, or for that status."""
    async with asyncio.timeout(30):
        while True:
            response = await ask(client, name)
            told = response.json()
            if response.status_code == 200:
                if (told["model"], told["outputs"]["logits"][0][0]) == expected:
                    return
            elif response.status_code == expected:
                return
            await asyncio.sleep(0.02)


async def taken_back(client: httpx.AsyncClient) -> None:
    """Waits until everybody can see that the canary is over."""
    async with asyncio.timeout(30):
        while (await client.get("/v1/deployments/web")).json()["returned"] is None:
            await asyncio.sleep(0.02)


async def test_what_one_is_told_all_serve(pair: tuple[Settings, Settings], publish: Publish, serve: Serve) -> None:
    publish(factor=1)
    publish(factor=2)
    async with serve(pair[0]) as (_, one), serve(pair[1]) as (_, two):
        await put(one, "net@1")
        await becomes(two, ("net@1", 1.0))
        await put(two, "net@2")
        await becomes(one, ("net@2", 2.0))
        await two.post("/v1/deployments/web/rollback")
        await becomes(one, ("net@1", 1.0))
        assert len((await settle(one, "ready"))["replicas"]) == 2
        await one.delete("/v1/deployments/web")
        await becomes(two, 404)
        for client in (one, two):
            assert (await client.get("/healthz/ready")).json()["deployments"] == []


async def test_a_canary_taken_back_by_one_is_gone_for_all(
    pair: tuple[Settings, Settings], publish: Publish, serve: Serve
) -> None:
    publish(factor=1)
    publish(factor=2, fragile=True)
    async with serve(pair[0]) as (first, one), serve(pair[1]) as (second, two):
        canary = {"model": "net@2", "percent": 100, "max_error_rate": 0.5, "min_requests": 3}
        await put(one, "net@1", canary=canary)
        await becomes(two, ("net@2", 2.0))
        await asyncio.gather(*(ask(client, value=200.0) for client in (one, two) for _ in range(8)))
        await taken_back(one)  # a replica that has seen it asks it no more, even before Redis knows
        for client in (one, two):
            await becomes(client, ("net@1", 1.0))
            body = await settle(client, "ready")
            assert (body["canary"], body["generation"], body["returned"]["model"]) == (None, 2, "net@2")
        # Both may have seen it; one was first, and the other took over what it wrote.
        returns = [app.state.fleet._returns.get("web", 0) for app in (first, second)]
        assert sorted(returns) == [0, 1]
        assert body["returned"]["replica"] in (first.state.fleet.replica, second.state.fleet.replica)


async def test_one_replica_alone_sees_that_a_canary_is_bad(
    pair: tuple[Settings, Settings], publish: Publish, serve: Serve
) -> None:
    publish(factor=1)
    publish(factor=2, fragile=True)
    async with serve(pair[0]) as (first, one), serve(pair[1]) as (second, two):
        canary = {"model": "net@2", "percent": 100, "max_error_rate": 0, "min_requests": 3}
        await put(one, "net@1", canary=canary)
        await becomes(two, ("net@2", 2.0))  # and never anything else than good answers there
        for _ in range(3):
            await ask(one, value=200.0)
        await becomes(two, ("net@1", 1.0))
        returned = (await settle(two, "ready"))["returned"]
        assert (returned["replica"], returned["figures"]["errors"]) == (first.state.fleet.replica, 3)
        assert second.state.fleet._returns == {}


async def test_a_person_is_faster_than_the_return(
    pair: tuple[Settings, Settings], publish: Publish, serve: Serve
) -> None:
    publish(factor=1)
    publish(factor=2, fragile=True)
    publish(factor=3)
    canary = {"model": "net@2", "percent": 100, "max_error_rate": 0.5, "min_requests": 3}
    async with serve(pair[0].model_copy(update={"poll_s": 600.0})) as (app, one), serve(pair[1]) as (_, two):
        await put(one, "net@1", canary=canary)
        await two.put("/v1/deployments/web", json={"model": "net@3"})  # `one` does not know yet
        assert await answered(one) == ("net@2", 2.0)
        for _ in range(5):
            await ask(one, value=200.0)  # trips, and looks at Redis
        await becomes(one, ("net@3", 3.0))
        body = await settle(one, "ready")
        assert (body["model"], body["returned"], body["generation"]) == ("net@3", None, 2)
        assert app.state.fleet._returns == {}


async def test_a_record_of_an_older_app_loads(
    settings: Settings, publish: Publish, serve: Serve, catalog: Catalog
) -> None:
    publish(factor=3)
    older = {
        "name": "web",
        "model": "net@1",
        "previous": None,
        "generation": 4,
        "instances": 1,
        "max_batch": None,
        "max_delay_ms": 0.0,
        "max_queue": None,
        "canary": {"model": "net@1", "percent": 5.0},
        "force": False,
        "created_at": "2026-01-01T00:00:00.000Z",
        "updated_at": "2026-01-01T00:00:00.000Z",
    }
    catalog.redis.hset("es:deployments", "web", json.dumps(older))
    async with serve(settings) as (_, client):
        body = await settle(client, "ready")
        assert (body["generation"], body["shadow"], body["returned"]) == (4, None, None)
        assert await answered(client) == ("net@1", 3.0)
        changed = (await put(client, "net@1", instances=2)).json()
        assert (changed["generation"], changed["status"]) == (5, "ready")
        # And what a deployment without the new parts looks like, an older app can read.
        written = json.loads(catalog.redis.hget("es:deployments", "web"))
        assert written.keys() <= older.keys()
        assert Deployment.model_validate(written).refs == ("net@1",)


async def test_without_redis_it_goes_on_and_then_catches_up(
    pair: tuple[Settings, Settings], publish: Publish, serve: Serve, tmp_path: Path
) -> None:
    publish("a", factor=1, bytes=1 << 30)
    publish("b", factor=2, bytes=1 << 30)
    publish("b", factor=3, bytes=1 << 30)
    folder = tmp_path / "own"
    folder.mkdir()
    store = EmbeddedStore(folder)
    url = store.start()
    own = pair[0].model_copy(update={"redis_url": url, "engine_memory_bytes": 3 << 29})
    try:
        catalog = Catalog.open(own, url, patience_s=1)
        reindex(Artifacts(own.artifacts_url), catalog)
        async with serve(own) as (app, client):
            await put(client, "a", name="a")
            await put(client, "b@1", name="b")
            store.stop()
            fleet = app.state.fleet
            async with asyncio.timeout(30):
                while not fleet._lost:
                    await asyncio.sleep(0.02)
            # Room for one of them only: what sleeps wakes without Redis too.
            for _ in range(2):
                assert await answered(client, "a") == ("a@1", 1.0)
                assert await answered(client, "b") == ("b@1", 2.0)
            assert (await client.get("/healthz/ready")).status_code == 503
            assert (await client.get("/healthz/serving")).status_code == 200
            store.start()
            changed = catalog.deployment("b").but(model="b@2", previous="b@1", generation=2)
            catalog.put_deployment(changed, was_generation=1)  # by another replica, say
            await becomes(client, ("b@2", 3.0), "b")
            assert await answered(client, "a") == ("a@1", 1.0)
            catalog.redis.close()
    finally:
        store.stop()
