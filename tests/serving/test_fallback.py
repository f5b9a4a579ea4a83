"""What goes on where a version fails: it is kept, found again after a restart, and gone back to in one call."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.domain.deployments import Deployment, LastReady
from app.domain.records import Version, now
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog

from .conftest import PATIENCE_S, Publish, Serve
from .test_deployments import WAIT, answered, ask, put, settle
from .test_swaps import nothing_loads


@pytest.fixture
def broken(publish: Publish, artifacts: Artifacts) -> Version:
    """A version that does not load: its file is not what was published."""
    version = publish("bad", factor=9)
    artifacts.put_bytes(b"damaged", f"{version.folder}/model.onnx")
    return version


async def roll_back(client: httpx.AsyncClient) -> dict[str, Any]:
    response = await client.post("/v1/deployments/web/rollback", headers=WAIT)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_previous_is_what_was_ready(client: httpx.AsyncClient, publish: Publish, broken: Version) -> None:
    for i in (1, 2):
        publish(factor=i)
    await put(client, "net@1")
    await put(client, "net@2")
    failed = (await put(client, "bad@1")).json()
    assert (failed["status"], failed["previous"]) == ("failed", "net@2")
    # One call makes the one that serves the wanted one again; the failed one is never gone back to.
    back = await roll_back(client)
    assert (back["status"], back["model"], back["previous"]) == ("ready", "net@2", "net@1")
    await put(client, "bad@1")
    again = (await put(client, "net@2")).json()
    assert (again["status"], again["model"], again["previous"]) == ("ready", "net@2", "net@1")
    assert (await roll_back(client))["model"] == "net@1"
    forth = await roll_back(client)
    assert (forth["model"], forth["previous"]) == ("net@2", "net@1")
    assert await answered(client) == ("net@2", 2.0)


async def test_what_has_never_been_ready_is_no_previous(
    client: httpx.AsyncClient, publish: Publish, broken: Version
) -> None:
    publish(factor=1)
    assert (await put(client, "bad@1")).json()["status"] == "failed"
    assert (await put(client, "net@1")).json()["previous"] is None
    refused = await client.post("/v1/deployments/web/rollback")
    assert (refused.status_code, refused.json()["code"]) == (409, "no_previous")


async def test_what_serves_cannot_be_deleted(
    client: httpx.AsyncClient, publish: Publish, broken: Version, catalog: Catalog
) -> None:
    for i in (1, 2, 3):
        publish(factor=i)
    await put(client, "net@3")
    await put(client, "net@1", canary={"model": "net@2", "percent": 50}, shadow={"model": "net@2"})
    assert (await put(client, "bad@1")).json()["status"] == "failed"
    for number in (1, 2):
        refused = await client.delete(f"/v1/models/net/versions/{number}")
        assert (refused.status_code, refused.json()["code"]) == (409, "deployed"), number
    # As ever: what is only gone back to may be deleted.
    assert (await client.delete("/v1/models/net/versions/3")).status_code == 204
    # No replica says so, and what was ready last is kept all the same.
    for key in catalog.redis.scan_iter("es:replica:*"):
        catalog.redis.delete(key)
    assert (await client.delete("/v1/models/net/versions/1")).status_code == 409
    await client.delete("/v1/deployments/web")
    assert (await client.delete("/v1/models/net/versions/1")).status_code == 204


async def test_a_restart_serves_the_one_before(
    settings: Settings, publish: Publish, serve: Serve, broken: Version
) -> None:
    publish(factor=2)
    async with serve(settings) as (_, client):
        await put(client, "net@1")
        await put(client, "bad@1")
    async with serve(settings) as (_, client):
        body = await settle(client, "failed")
        assert (body["model"], body["previous"], body["error"]["code"]) == ("bad@1", "net@1", "damaged_artifact")
        assert body["replicas"][0]["serving"] == "net@1"
        assert await answered(client) == ("net@1", 2.0)
        assert (await client.get("/healthz/ready")).status_code == 503
        assert (await client.get("/healthz/serving")).status_code == 200
        assert (await client.delete("/v1/models/net/versions/1")).status_code == 409
        assert (await roll_back(client))["status"] == "ready"
        assert (await client.get("/healthz/ready")).status_code == 200
        assert await answered(client) == ("net@1", 2.0)


async def test_a_restart_serves_the_main_version_of_a_canary_that_fails(
    settings: Settings, publish: Publish, serve: Serve, broken: Version
) -> None:
    publish(factor=2)
    for role in ("canary", "shadow"):
        async with serve(settings) as (_, client):
            made = (await put(client, "net@1", **{role: {"model": "bad@1", "percent": 50}})).json()
            assert made["status"] == "failed"
            assert made["error"]["detail"].startswith(f"the {role} bad@1 does not load: ")
        async with serve(settings) as (_, client):
            assert (await settle(client, "failed"))["replicas"][0]["serving"] == "net@1"
            assert {await answered(client) for _ in range(5)} == {("net@1", 2.0)}


async def test_what_sleeps_falls_back_too(
    settings: Settings, publish: Publish, serve: Serve, broken: Version, catalog: Catalog
) -> None:
    size = 1 << 30
    publish("a", factor=1, bytes=size)
    publish("b", factor=2, bytes=size)
    one = settings.model_copy(update={"engine_memory_bytes": size * 3 // 2})
    async with serve(one) as (_, client):
        await put(client, "b", name="a0")
        await put(client, "a", name="web")
        await put(client, "bad@1", name="web")
    async with serve(one) as (_, client):
        for _ in range(2):
            async with asyncio.timeout(PATIENCE_S):
                while (await ask(client, "a0")).status_code != 200:
                    await asyncio.sleep(0.02)
                while (response := await ask(client)).status_code != 200:
                    await asyncio.sleep(0.02)
            assert response.json()["model"] == "a@1"
        assert (await settle(client, "failed"))["error"]["code"] == "damaged_artifact"


async def test_two_replicas_and_a_late_word(
    settings: Settings, publish: Publish, serve: Serve, tmp_path: Path, broken: Version
) -> None:
    publish(factor=1)
    publish(factor=2)
    first = settings.model_copy(update={"poll_s": 0.1})
    other = first.model_copy(update={"data": tmp_path / "other", "store_url": settings.artifacts_url})
    async with serve(first) as (app, one), serve(other) as (_, two):
        await put(one, "net@1")
        await settle(two, "ready", replicas=2)
        await put(two, "net@2")
        catalog: Catalog = app.state.catalog
        made = catalog.deployment("web").created_at
        catalog.note_ready("web", LastReady(made=made, generation=1, model="net@1"))
        assert catalog.last_ready("web") == LastReady(made=made, generation=2, model="net@2", before="net@1")
        body = (await put(one, "bad@1")).json()
        assert (body["status"], body["previous"]) == ("failed", "net@2")


def test_what_was_ready_last_is_kept(catalog: Catalog) -> None:
    at = now()
    catalog.note_ready("web", LastReady(made=at, generation=1, model="a@1"))
    assert catalog.last_ready("web") is None  # there is no such deployment
    first = Deployment(name="web", model="a@1", previous="a@9", created_at=at, updated_at=at)
    catalog.put_deployment(first, was_generation=None)
    catalog.note_ready("web", LastReady(made="2020-01-01T00:00:00.000Z", generation=1, model="a@1"))
    assert catalog.last_ready("web") is None  # nor was it that one
    catalog.note_ready("web", LastReady(made=at, generation=1, model="a@1"))
    # Written by an older app, which kept nothing of this: what it called the previous one stands.
    assert catalog.last_ready("web") == LastReady(made=at, generation=1, model="a@1", before="a@9")
    catalog.note_ready("web", LastReady(made=at, generation=4, model="b@1"))
    catalog.note_ready("web", LastReady(made=at, generation=2, model="a@1"))  # late
    assert catalog.all_last_ready() == {"web": LastReady(made=at, generation=4, model="b@1", before="a@1")}
    assert catalog.deployment("web").generation == 1
    catalog.drop_deployment("web")
    assert catalog.last_ready("web") is None


async def test_who_waits_hears_that_it_was_deleted(app: FastAPI, client: httpx.AsyncClient, publish: Publish) -> None:
    publish(factor=1)
    with nothing_loads(app.state.fleet):
        waiting = asyncio.create_task(put(client, "net@1"))
        async with asyncio.timeout(PATIENCE_S):
            while (await client.get("/v1/deployments/web")).status_code != 200:
                await asyncio.sleep(0.01)
            assert (await client.delete("/v1/deployments/web")).status_code == 204
            told = await asyncio.wait_for(waiting, 30)  # long before the 60 s that it would wait
    assert (told.status_code, told.json()["code"]) == (409, "deployment_deleted")


async def test_who_waits_follows_what_is_wanted_instead(
    app: FastAPI, client: httpx.AsyncClient, publish: Publish
) -> None:
    publish(factor=1)
    publish(factor=2)
    with nothing_loads(app.state.fleet):
        waiting = asyncio.create_task(put(client, "net@1"))
        async with asyncio.timeout(PATIENCE_S):
            while (await client.get("/v1/deployments/web")).status_code != 200:
                await asyncio.sleep(0.01)
        await client.put("/v1/deployments/web", json={"model": "net@2"})
    body = (await waiting).json()
    assert (body["status"], body["model"], body["generation"]) == ("ready", "net@2", 2)


async def test_only_a_name_that_can_be_is_said_to_be_free(client: httpx.AsyncClient) -> None:
    assert "PUT /v1/deployments/lin makes it" in (await ask(client, "lin")).json()["hint"]
    for name in ("lin@2", "ünï", "-x", "x" * 64):
        missing = await ask(client, name)
        assert (missing.status_code, "PUT" in missing.json()["hint"]) == (404, False), name
