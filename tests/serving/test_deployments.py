"""Deployments over HTTP: made, changed, swapped under load, rolled back, failed, found again after a restart."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
import uvicorn
from fastapi import FastAPI

from app.embedded import EmbeddedStore
from app.metrics import KEPT_S
from app.serving.lane import Lane
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.registry import reindex

from .conftest import PATIENCE_S, Held, Publish, Serve, until

WAIT = {"Prefer": "wait=60"}  # the longest; nothing here comes near it


async def put(client: httpx.AsyncClient, model: str, name: str = "web", **fields: Any) -> httpx.Response:
    return await client.put(f"/v1/deployments/{name}", json={"model": model} | fields, headers=WAIT)


async def ask(client: httpx.AsyncClient, name: str = "web", value: float = 1.0) -> httpx.Response:
    return await client.post(f"/predict/{name}", json={"inputs": [[value, 0, 0]]})


async def answered(client: httpx.AsyncClient, name: str = "web") -> tuple[str, float]:
    response = await ask(client, name)
    assert response.status_code == 200, response.text
    body = response.json()
    return body["model"], body["outputs"]["logits"][0][0]


async def settle(
    client: httpx.AsyncClient, status: str = "ready", name: str = "web", replicas: int | None = None
) -> dict[str, Any]:
    """Waits until a deployment is said to be so, by that many replicas."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            body: dict[str, Any] = (await client.get(f"/v1/deployments/{name}")).json()
            if body.get("status") == status and replicas in (None, len(body["replicas"])):
                return body
            await asyncio.sleep(0.05)


async def answers_with(client: httpx.AsyncClient, path: str, status: int) -> None:
    """Waits until a GET of the path gives that status."""
    async with asyncio.timeout(PATIENCE_S):
        while (await client.get(path)).status_code != status:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("format", ["onnxruntime", "openvino"])
async def test_from_put_to_an_answer(client: httpx.AsyncClient, publish: Publish, format: str) -> None:
    version = publish(factor=3, format=format)
    made = await put(client, "net@1")
    assert made.status_code == 201, made.text
    body = made.json()
    assert {k: body[k] for k in ("name", "model", "previous", "status", "generation", "instances", "max_batch")} == {
        "name": "web",
        "model": "net@1",
        "previous": None,
        "status": "ready",
        "generation": 1,
        "instances": 1,
        "max_batch": 8,
    }
    assert body["error"] is None
    assert len(body["replicas"]) == 1
    assert made.headers["preference-applied"] == "wait=60"
    found = (await client.post("/predict/web", json={"inputs": [[1, 2, 0.5]], "top_k": 2})).json()
    assert found["model"] == version.ref
    assert found["outputs"] == {"logits": [[3, 6, 1.5]]}
    assert [p["label"] for p in found["predictions"][0]] == ["b", "a"]
    assert (await client.get("/v1/deployments")).json()["items"][0]["status"] == "ready"


async def test_the_same_again_changes_nothing(client: httpx.AsyncClient, publish: Publish) -> None:
    publish()
    await put(client, "net@1", instances=2)
    again = await put(client, "net@1", instances=2)
    assert (again.status_code, again.json()["generation"]) == (200, 1)
    other = await put(client, "net@1")
    assert (other.status_code, other.json()["generation"], other.json()["instances"]) == (200, 2, 1)
    assert other.json()["previous"] is None


async def test_a_new_version_a_rollback_and_the_end(app: FastAPI, client: httpx.AsyncClient, publish: Publish) -> None:
    publish(factor=1)
    publish(factor=2)
    await put(client, "net@1")
    assert (await client.post("/v1/deployments/web/rollback")).json()["code"] == "no_previous"
    assert await answered(client) == ("net@1", 1.0)
    second = await put(client, "net")
    assert (second.status_code, second.json()["model"], second.json()["previous"]) == (200, "net@2", "net@1")
    assert await answered(client) == ("net@2", 2.0)
    back = await client.post("/v1/deployments/web/rollback", headers=WAIT)
    assert (back.status_code, back.json()["model"], back.json()["previous"]) == (200, "net@1", "net@2")
    assert back.json()["status"] == "ready"
    assert await answered(client) == ("net@1", 1.0)
    assert (await client.delete("/v1/deployments/web")).status_code == 204
    await until(lambda: app.state.fleet.names() == [])
    gone = await ask(client)
    assert (gone.status_code, gone.json()["code"]) == (404, "deployment_not_found")
    for response in (
        await client.get("/v1/deployments/web"),
        await client.delete("/v1/deployments/web"),
        await client.post("/v1/deployments/web/rollback"),
    ):
        assert response.status_code == 404
    anew = await put(client, "net@2")
    assert (anew.status_code, anew.json()["generation"], anew.json()["status"]) == (201, 1, "ready")
    assert await answered(client) == ("net@2", 2.0)


async def test_what_cannot_be_deployed(client: httpx.AsyncClient, publish: Publish, catalog: Catalog) -> None:
    network = publish("raw").but(format="torch")
    catalog.put_version(network)
    for ref in ("raw@1", "raw"):
        refused = await put(client, ref)
        assert (refused.status_code, refused.json()["code"]) == (409, "not_an_engine")
        assert "convert" in refused.json()["hint"]
    catalog.put_version(publish("gpu").but(format="tensorrt"))
    refused = await put(client, "gpu@1")
    assert (refused.status_code, refused.json()["code"]) == (409, "runtime_unavailable")
    for ref, status in (("nothing", 404), ("nothing@1", 404), ("raw@9", 404), ("../x", 422), ("raw@0", 422)):
        assert (await put(client, ref)).status_code == status
    assert (await client.get("/v1/deployments")).json()["items"] == []


async def test_a_doubtful_version_needs_force(client: httpx.AsyncClient, publish: Publish, catalog: Catalog) -> None:
    publish(factor=1, verdict="accepted")
    publish(factor=2, verdict="rejected")
    publish(factor=3, verdict="unproven")
    for ref, code in (("net@2", "version_rejected"), ("net@3", "version_unproven")):
        refused = await put(client, ref)
        assert (refused.status_code, refused.json()["code"]) == (409, code)
        assert "force" in refused.json()["hint"]
    assert (await put(client, "net")).json()["model"] == "net@1"
    forced = await put(client, "net@2", force=True)
    assert (forced.status_code, forced.json()["status"]) == (200, "ready")
    catalog.put_evaluation("net@1", {"verdict": "rejected", "baseline": "x@1", "dataset": "d@1"})
    assert (await put(client, "net@1", name="other")).json()["code"] == "version_rejected"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"model": 3},
        {"model": "net@1", "instances": 0},
        {"model": "net@1", "max_batch": 0},
        {"model": "net@1", "max_batch": 1.5},
        {"model": "net@1", "max_queue": -1},
        {"model": "net@1", "max_delay_ms": 1e9},
        {"model": "net@1", "unknown": 1},
        {"model": "net@1", "canary": {"model": "net@1", "percent": 101}},
        {"model": "net@1", "canary": {"model": "net@1"}},
        [],
    ],
)
async def test_bodies_that_are_wrong(client: httpx.AsyncClient, publish: Publish, body: Any) -> None:
    publish()
    refused = await client.put("/v1/deployments/web", json=body)
    assert refused.status_code == 422, refused.text
    assert refused.headers["content-type"] == "application/problem+json"
    assert (await client.put("/v1/deployments/bad%20name", json={"model": "net@1"})).status_code == 422


async def test_a_version_that_does_not_load_leaves_the_old_one_serving(
    client: httpx.AsyncClient, publish: Publish, artifacts: Artifacts
) -> None:
    publish(factor=1)
    broken = publish(factor=2)
    await put(client, "net@1")
    artifacts.put_bytes(b"damaged", f"{broken.folder}/model.onnx")
    failed = (await put(client, "net@2")).json()
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == "damaged_artifact"
    assert await answered(client) == ("net@1", 1.0)
    not_ready = await client.get("/healthz/ready")
    assert not_ready.status_code == 503
    assert "web: failed" in not_ready.json()["detail"]
    alone = (await put(client, "net@2", name="alone")).json()
    assert alone["status"] == "failed"
    refused = await ask(client, "alone")
    assert (refused.status_code, refused.json()["code"]) == (503, "deployment_failed")
    back = await client.post("/v1/deployments/web/rollback", headers=WAIT)
    assert back.json()["status"] == "ready"


async def test_a_swap_under_load_loses_no_request(client: httpx.AsyncClient, publish: Publish) -> None:
    for i in range(1, 4):
        publish(factor=i, format="openvino" if i == 2 else "onnxruntime")
    await put(client, "net@1")
    stop = False
    seen = {f"net@{n}": 0 for n in (1, 2, 3)}
    lost: list[str] = []

    async def load(worker: int) -> None:
        value = worker + 1.0
        while not stop:
            response = await ask(client, value=value)
            if response.status_code != 200:
                lost.append(response.text)
                continue
            body = response.json()
            seen[body["model"]] += 1
            factor = int(body["model"][-1])
            if body["outputs"]["logits"][0] != [value * factor, 0, 0]:
                lost.append(response.text)

    workers = [asyncio.create_task(load(i)) for i in range(16)]

    async def some_more_of(n: int) -> None:
        enough = seen[f"net@{n}"] + 40
        await until(lambda: seen[f"net@{n}"] >= enough or bool(lost))

    await some_more_of(1)
    for n in (2, 3, 1, 2):
        assert (await put(client, f"net@{n}", instances=n)).json()["status"] == "ready"
        await some_more_of(n)
    stop = True
    await asyncio.gather(*workers)
    assert lost == []
    assert sum(seen.values()) >= 200


async def test_a_canary_gets_its_share(client: httpx.AsyncClient, publish: Publish) -> None:
    publish(factor=1)
    publish(factor=2)
    made = await put(client, "net@1", canary={"model": "net@2", "percent": 50})
    assert made.json()["canary"] == {"model": "net@2", "percent": 50}
    seen = [(await answered(client))[0] for _ in range(100)]
    assert 20 < seen.count("net@2") < 80
    await put(client, "net@1")
    assert {(await answered(client))[0] for _ in range(20)} == {"net@1"}


async def test_a_restart_serves_again_unasked(settings: Settings, publish: Publish, serve: Serve) -> None:
    publish(factor=7)
    async with serve(settings) as (_, client):
        await put(client, "net@1")
    async with serve(settings) as (_, client):
        await settle(client)
        assert await answered(client) == ("net@1", 7.0)
        await answers_with(client, "/healthz/ready", 200)


async def test_two_replicas_agree(settings: Settings, publish: Publish, serve: Serve, tmp_path: Path) -> None:
    publish(factor=1)
    publish(factor=2)
    other = settings.model_copy(update={"data": tmp_path / "other", "store_url": settings.artifacts_url})
    async with serve(settings) as (_, one), serve(other) as (_, two):
        assert len((await put(one, "net@1")).json()["replicas"]) >= 1
        await settle(one, replicas=2)  # within a moment it is known there too
        assert await answered(two) == ("net@1", 1.0)
        changed = (await put(two, "net@2")).json()
        assert changed["status"] == "ready"
        assert len(changed["replicas"]) == 2
        assert await answered(one) == ("net@2", 2.0)
    # Those that have left are not waited for.
    async with serve(settings) as (_, one):
        assert (await put(one, "net@1")).json()["status"] == "ready"


async def test_files_of_what_is_no_longer_deployed_are_removed(
    client: httpx.AsyncClient, publish: Publish, settings: Settings
) -> None:
    publish(factor=1)
    publish(factor=2)
    engines = settings.scratch / "engines"
    await put(client, "net@1")
    assert [p.name for p in engines.iterdir()] == ["net@1"]
    await put(client, "net@2")
    await until(lambda: [p.name for p in engines.iterdir()] == ["net@2"])


async def test_damaged_files_on_this_machine_are_fetched_again(
    settings: Settings, publish: Publish, serve: Serve
) -> None:
    publish(factor=2)
    async with serve(settings) as (_, client):
        await put(client, "net@1")
    (settings.scratch / "engines" / "net@1" / "model.onnx").write_bytes(b"x")
    async with serve(settings) as (_, client):
        await settle(client)
        assert await answered(client) == ("net@1", 2.0)


async def test_files_that_vanish_while_they_are_opened_are_fetched_again(
    client: httpx.AsyncClient, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tidying up after an old version may overtake the wish to have it back."""
    publish(factor=2)
    opened: list[Path] = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, path: str, **options: Any) -> None:
            opened.append(Path(path))
            if len(opened) == 1:
                shutil.rmtree(Path(path).parent)
            super().__init__(path, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    assert (await put(client, "net@1")).json()["status"] == "ready"
    assert await answered(client) == ("net@1", 2.0)
    assert len(opened) == 2


async def test_redis_that_goes_and_comes_back(
    settings: Settings, publish: Publish, serve: Serve, tmp_path: Path
) -> None:
    publish(factor=4)
    folder = tmp_path / "own"
    folder.mkdir()
    store = EmbeddedStore(folder)
    own = settings.model_copy(update={"redis_url": store.start(), "poll_s": 0.2})
    try:
        reindex(Artifacts(own.artifacts_url), Catalog.open(own, str(own.redis_url), patience_s=PATIENCE_S))
        async with serve(own) as (_, client):
            await put(client, "net@1")
            await answers_with(client, "/healthz/ready", 200)
            store.stop()
            for _ in range(20):
                assert await answered(client) == ("net@1", 4.0)
                await asyncio.sleep(0.02)
            began = time.monotonic()
            not_ready = await client.get("/healthz/ready")
            assert (not_ready.status_code, not_ready.json()["code"]) == (503, "not_ready")
            assert "redis" in not_ready.json()["detail"]
            assert time.monotonic() - began < 60
            assert (await client.get("/healthz/live")).status_code == 200
            store.start()
            await answers_with(client, "/healthz/ready", 200)
            assert await answered(client) == ("net@1", 4.0)
    finally:
        store.stop()


async def test_models_that_follow_each_other_under_a_name_are_counted_apart(
    app: FastAPI, client: httpx.AsyncClient, publish: Publish
) -> None:
    publish("a", factor=1)
    publish("b", factor=2)
    for times, ref in ((2, "a@1"), (3, "b@1")):
        await put(client, ref)
        for _ in range(times):
            assert (await answered(client))[0] == ref
    lines = (await client.get("/metrics")).text.splitlines()
    for times, ref in ((2, "a@1"), (3, "b@1")):
        at = f'model="web",version="1",ref="{ref}"'
        assert f'enginesmith_stage_seconds_count{{{at},stage="queue"}} {times}' in lines
    assert 'nv_inference_count{model="web",version="1"} 5' in lines  # Triton's names have Triton's labels
    (told,) = (await client.get("/v2/models/web/stats")).json()["model_stats"]
    assert (told["version"], told["inference_count"]) == ("1", 3)
    # What has gone is forgotten after a while, and what is served is not.
    app.state.fleet.meters.keep({("web", "b@1")}, time.monotonic() + KEPT_S)
    text = (await client.get("/metrics")).text
    assert 'ref="b@1"' in text
    assert 'ref="a@1"' not in text


async def test_health_and_metrics(client: httpx.AsyncClient, publish: Publish) -> None:
    publish(factor=1)
    assert (await client.get("/healthz/live")).json() == {"status": "live"}
    await answers_with(client, "/healthz/ready", 200)
    await put(client, "net@1")
    for _ in range(3):
        await client.post("/predict/web", json={"inputs": [[1, 0, 0], [2, 0, 0]]})
    await client.post("/predict/web", json={"inputs": [["a", 0, 0]]})
    text = (await client.get("/metrics")).text
    lines = text.splitlines()
    at = 'model="web",version="1"'
    assert f"nv_inference_request_success{{{at}}} 3" in lines
    assert f"nv_inference_count{{{at}}} 6" in lines
    assert f"nv_inference_exec_count{{{at}}} 3" in lines
    assert f'nv_inference_request_failure{{{at},reason="OTHER"}} 1' in lines
    assert f"nv_inference_pending_request_count{{{at}}} 0" in lines
    for name in ("request", "queue", "compute_input", "compute_infer", "compute_output"):
        assert any(line.startswith(f"nv_inference_{name}_duration_us{{{at}}} ") for line in lines)
    assert 'enginesmith_deployment_ready{deployment="web"} 1' in lines
    assert "enginesmith_http_requests_total" in text
    from prometheus_client.parser import text_string_to_metric_families

    names = {family.name for family in text_string_to_metric_families(text)}
    assert "nv_inference_request_success" in names


async def test_the_engine_that_served_is_closed(app: FastAPI, client: httpx.AsyncClient, publish: Publish) -> None:
    publish(factor=1)
    publish(factor=2)
    await put(client, "net@1")
    engine = app.state.fleet.lane("web").batcher.engine
    await put(client, "net@2")
    await until(lambda: engine._run is None)


async def test_a_client_that_hangs_up_is_not_served(settings: Settings, publish: Publish, serve: Serve) -> None:
    publish()
    async with serve(settings) as (app, client):
        await put(client, "net@1", max_batch=1)
        (place,) = app.state.fleet.places()
        free = place.main
        engine = Held(free.batcher.engine)
        place.main = Lane(free.plan, free.version, engine, free.batcher.meter)
        meter = free.batcher.meter
        server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None, ws="none"))
        serving = asyncio.create_task(server.serve())
        try:
            await until(lambda: server.started)
            port = server.servers[0].sockets[0].getsockname()[1]
            body = b'{"inputs": [[1, 0, 0]]}'
            fields = ("POST /predict/web HTTP/1.1", "Host: x", "Content-Type: application/json", "Content-Length: 23")
            head = "\r\n".join(fields) + "\r\n\r\n"
            connections = []
            for _ in range(30):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(head.encode() + body)
                connections.append(writer)
            await until(lambda: meter.pending == 29)  # the engine has one, and holds it
            for writer in connections:
                writer.close()
            await until(lambda: meter.failed["CANCELED"] == 30)
            assert meter.pending == 0
            engine.gate.set()
            await until(lambda: meter.runs > 0)
            assert engine.runs == 1
        finally:
            engine.gate.set()
            server.should_exit = True
            await serving
            await free.close(PATIENCE_S)


async def test_answers_equal_the_engines_own(
    app: FastAPI, client: httpx.AsyncClient, publish: Publish, tmp_path: Path
) -> None:
    publish(factor=0.3, format="openvino")
    await put(client, "net@1")
    x = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    own = app.state.fleet.lane("web").batcher.engine.infer({"x": x})["logits"]
    found = (await client.post("/predict/web", json={"inputs": x.tolist()})).json()["outputs"]["logits"]
    np.testing.assert_array_equal(np.array(found, np.float32), own)
    shutil.rmtree(tmp_path / "engine1")
