"""Versions that come and go under constant load: nothing is lost, nothing is mixed, and nobody is told otherwise."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import numpy as np
from fastapi import FastAPI

from app.errors import Problem
from app.queue import Queue
from app.serving.fleet import Fleet
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog

from .conftest import Publish, Serve
from .test_deployments import answered, ask, put, settle


@contextmanager
def nothing_loads(fleet: Fleet) -> Iterator[None]:
    """Occupies the threads in which engines are opened."""
    gate = threading.Event()
    for _ in range(fleet._opening._max_workers):
        fleet._opening.submit(gate.wait, 60)
    try:
        yield
    finally:
        gate.set()


async def converged(fleet: Fleet) -> None:
    async with asyncio.timeout(60):
        while fleet.missing():
            await asyncio.sleep(0.002)


async def test_fifty_swaps_and_rollbacks_under_load(app: FastAPI, client: httpx.AsyncClient, publish: Publish) -> None:
    fleet: Fleet = app.state.fleet
    for factor in (1, 2):
        publish(factor=factor)
    await put(client, "net@1")
    served: Counter[float] = Counter()
    wrong: list[object] = []
    swaps, stop = 0, False

    async def direct(rows: int) -> None:
        ones = {"x": np.ones((rows, 3), np.float32)}
        while not stop:
            for again in (True, False):
                with await fleet.find("web") as lane:
                    try:
                        found = (await lane.infer(ones))["logits"]
                    except Problem as problem:
                        if not again or problem.code != "shutting_down":
                            wrong.append(problem)
                        continue
                values = set(found.ravel().tolist())
                if found.shape != (rows, 3) or values != {float(lane.version.version)}:
                    wrong.append((lane.version.ref, found.tolist()))
                served[values.pop()] += 1
                break

    async def over_http(rows: int) -> None:
        body = {"inputs": [[1, 1, 1]] * rows}
        while not stop:
            response = await client.post("/predict/web", json=body)
            told = response.json()
            if response.status_code != 200 or told["outputs"]["logits"] != [[int(told["model"][-1])] * 3] * rows:
                wrong.append(told)

    load = [asyncio.create_task(task(rows)) for task in (direct, over_http) for rows in (1, 2, 3, 5)]
    while swaps < 50:
        if swaps % 2:
            done = await client.post("/v1/deployments/web/rollback")
        else:
            done = await client.put("/v1/deployments/web", json={"model": f"net@{1 + (swaps // 2 + 1) % 2}"})
        assert done.status_code == 200, done.text
        await converged(fleet)
        swaps += 1
        expected = done.json()["model"]
        assert await answered(client) == (expected, float(expected[-1]))
    stop = True
    await asyncio.gather(*load)
    assert wrong == []
    assert served.keys() == {1.0, 2.0}
    async with asyncio.timeout(60):
        while fleet._loading.draining:
            await asyncio.sleep(0.01)
    assert len(fleet._loading.budget._held) == 1  # nothing that was swapped out is still held


async def test_the_old_version_answers_until_the_new_one_is_warm(
    app: FastAPI, client: httpx.AsyncClient, publish: Publish
) -> None:
    fleet: Fleet = app.state.fleet
    publish(factor=1)
    publish(factor=2)
    await put(client, "net@1")
    with nothing_loads(fleet):
        begun = (await client.put("/v1/deployments/web", json={"model": "net@2"})).json()
        assert (begun["status"], begun["model"], begun["previous"]) == ("loading", "net@2", "net@1")
        for _ in range(3):
            assert await answered(client) == ("net@1", 1.0)
            # Not served as wanted; a balancer may send requests all the same.
            refused = await client.get("/healthz/ready")
            assert (refused.status_code, refused.json()["detail"]) == (503, "not ready: web: loading")
            assert (await client.get("/healthz/serving")).status_code == 200
            assert 'enginesmith_deployment_ready{deployment="web"} 0' in (await client.get("/metrics")).text
            assert (await client.get("/v1/deployments/web")).json()["status"] == "loading"
    await settle(client, "ready")
    assert (await client.get("/healthz/ready")).status_code == 200
    assert await answered(client) == ("net@2", 2.0)


async def test_a_first_load_is_not_ready_and_takes_nothing_out_of_service(
    app: FastAPI, client: httpx.AsyncClient, publish: Publish
) -> None:
    publish(factor=1)
    await put(client, "net@1", name="other")
    with nothing_loads(app.state.fleet):
        await client.put("/v1/deployments/web", json={"model": "net@1"})
        assert (await client.get("/healthz/ready")).status_code == 503
        assert (await client.get("/v2/health/ready")).status_code == 503
        # Or else one PUT would have a balancer take away every replica, with all that they serve.
        assert (await client.get("/healthz/serving")).status_code == 200
        assert await answered(client, "other") == ("net@1", 1.0)
        refused = await ask(client)
        assert (refused.status_code, refused.json()["code"]) == (503, "deployment_loading")
        assert refused.headers["retry-after"]
    await settle(client, "ready")
    assert (await client.get("/healthz/serving")).json() == {"status": "serving", "deployments": ["other", "web"]}


async def test_a_replica_that_starts_is_not_serving_until_all_is_loaded(
    settings: Settings, publish: Publish, serve: Serve, catalog: Catalog, artifacts: Artifacts
) -> None:
    publish(factor=1)
    async with serve(settings) as (_, client):
        await put(client, "net@1")
        await put(client, "net@1", name="other")
    fleet = Fleet(settings, catalog, artifacts, Queue(settings.redis_url or ""))
    try:
        with nothing_loads(fleet):
            await fleet.start()
            await fleet.settled()
            assert fleet.owed() == ["other", "web"]
            async with serve(settings) as (_, client):  # another replica; and what is made anew is new for both
                await put(client, "net@1", name="third")
                await fleet.settled()
                assert (fleet.owed(), fleet.unserved()) == (["other", "web"], ["other", "third", "web"])
        await converged(fleet)
        assert fleet.owed() == []
    finally:
        await fleet.stop()


async def test_what_loads_nowhere_keeps_no_replica_from_serving(
    settings: Settings, publish: Publish, serve: Serve, artifacts: Artifacts
) -> None:
    publish(factor=1)
    artifacts.put_bytes(b"damaged", f"{publish('bad').folder}/model.onnx")
    for status in (201, 200):
        async with serve(settings) as (_, client):
            assert (await put(client, "net@1", name="other")).status_code == status
            assert (await put(client, "bad@1")).json()["status"] == "failed"
            await settle(client, "ready", "other")
            assert (await client.get("/healthz/serving")).status_code == 200
            assert (await client.get("/healthz/ready")).status_code == 503


async def test_the_last_wish_counts(app: FastAPI, client: httpx.AsyncClient, publish: Publish) -> None:
    for i in range(1, 5):
        publish(factor=i)
    await put(client, "net@1")
    with nothing_loads(app.state.fleet):
        for n in (2, 3, 4):
            await client.put("/v1/deployments/web", json={"model": f"net@{n}"})
    async with asyncio.timeout(30):
        while (await answered(client))[0] != "net@4":
            pass
    body = await settle(client, "ready")
    assert (body["model"], body["previous"], body["generation"]) == ("net@4", "net@2", 4)  # net@3 was never loaded


async def test_a_deletion_while_it_loads(app: FastAPI, client: httpx.AsyncClient, publish: Publish) -> None:
    publish(factor=1)
    with nothing_loads(app.state.fleet):
        await client.put("/v1/deployments/web", json={"model": "net@1"})
        assert (await client.delete("/v1/deployments/web")).status_code == 204
        assert (await client.get("/healthz/ready")).status_code == 200
        assert (await ask(client)).status_code == 404
    fleet: Fleet = app.state.fleet
    async with asyncio.timeout(30):
        while fleet._loading.draining or fleet._loading._opening:
            await asyncio.sleep(0.01)
        while fleet._loading.budget._held:
            await asyncio.sleep(0.01)
    assert (await ask(client)).status_code == 404
