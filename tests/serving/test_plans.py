"""Plans of one kind of GPU on another: a worker builds one, once, and the replicas serve it with no hand from anyone.

The echo runtime plays the GPUs: it says which one it is when ECHO_DEVICE names one.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from app import runtimes
from app.domain.plans import KeptPlan, key_of, queue_of
from app.domain.records import Version, now
from app.queue import Queue
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.plans import files_of, publish_plan, read_plan
from app.storage.registry import put_files, remove_version
from app.storage.sweeping import sweep

from .conftest import Publish, Serve
from .test_deployments import answered, ask, put, settle

ROOT = Path(__file__).resolve().parents[2]
Play = Callable[[str], None]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """From now on this process has that GPU."""
    return lambda name: monkeypatch.setenv("ECHO_DEVICE", name)


@asynccontextmanager
async def a_worker(settings: Settings, device: str) -> AsyncIterator[None]:
    """A real one, on a machine with that GPU."""
    command = [sys.executable, "-m", "workers", "--count", "1"]
    process = subprocess.Popen(command, cwd=ROOT, env=settings.environ() | {"ECHO_DEVICE": device})
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 60)


def jobs_of(catalog: Catalog) -> list[str]:
    return [job.id for job in catalog.jobs(kind="plan")[0]]


async def building(client: httpx.AsyncClient, told: str) -> None:
    """Waits until the deployment is said to be building, in these words."""
    async with asyncio.timeout(60):
        while told not in str((await settle(client, "building"))["building"]):
            await asyncio.sleep(0.05)


async def test_a_plan_is_built_once_and_served_by_all(
    settings: Settings,
    tmp_path: Path,
    publish: Publish,
    serve: Serve,
    catalog: Catalog,
    artifacts: Artifacts,
    play: Play,
) -> None:
    play("a")
    publish(format="onnxruntime", factor=2)
    version = publish(format="echo")
    play("b")
    both = (settings, settings.model_copy(update={"data": tmp_path / "other", "store_url": settings.artifacts_url}))
    async with serve(both[0]) as (_, one), serve(both[1]) as (_, two):
        await put(one, "net@1")
        await one.put("/v1/deployments/web", json={"model": "net@2"})
        for client in (one, two):
            await building(client, "waits for a worker with 1, b to build one")
            assert await answered(client) == ("net@1", 2.0)  # what was there goes on
        (id,) = jobs_of(catalog)
        job = catalog.job(id)
        assert (job.model, job.queue, job.status) == ("net@2", "gpu-echo-b-1", "queued")
        told = (await one.get("/v1/deployments/web")).json()
        assert told["error"] is None
        assert id in told["building"]
        # Nobody who lacks that GPU takes it.
        assert Queue(str(settings.redis_url)).waiting() == {id}
        async with a_worker(settings, "b"):
            await building(one, f"job {id} builds one for here")
            for client in (one, two):
                await settle(client, "ready")
                assert await answered(client) == ("net@2", 1.0)
                page = await client.get(f"/v1/jobs/{id}/report", headers={"Accept": "text/html"})
                assert page.status_code == 200
                assert "Built for" in page.text
    assert jobs_of(catalog) == [id]
    plan = read_plan(artifacts, key_of(version, runtimes.source_of("echo"), {"version": "1", "device": "b"}))
    assert plan is not None
    assert (plan.built_for["device"], plan.source, plan.job) == ("b", version.files["model.echo"], id)
    # A replica that comes later finds it: no worker is needed.
    async with serve(both[0]) as (_, one):
        await settle(one, "ready")
        assert await answered(one) == ("net@2", 1.0)
        # One that went from the store is asked for again.
        artifacts.delete_all(f"plans/{plan.key}")
        await one.delete("/v1/deployments/web")
        shutil.rmtree(both[0].scratch / "engines", ignore_errors=True)
        await one.put("/v1/deployments/web", json={"model": "net@2"})
        await building(one, "waits for a worker")
    assert len(jobs_of(catalog)) == 2
    play("a")  # and where the version's own plan fits, nothing is looked for
    async with serve(both[0]) as (_, one):
        await settle(one, "ready")


async def test_a_job_that_fails_is_told_and_can_be_run_again(
    settings: Settings, publish: Publish, serve: Serve, catalog: Catalog, play: Play
) -> None:
    play("a")
    publish(format="echo")
    play("b")
    async with serve(settings) as (_, client):
        await client.put("/v1/deployments/web", json={"model": "net@1"})
        await building(client, "waits for a worker")
        refused = await ask(client)
        assert (refused.status_code, refused.json()["code"]) == (503, "deployment_building")
        (id,) = jobs_of(catalog)
        catalog.moved(id, was={"queued"}, to="failed", error={"detail": "no such operator", "retryable": False})
        failed = await settle(client, "failed")
        assert failed["error"]["code"] == "plan_not_built"
        assert "no such operator" in failed["error"]["detail"]
        assert f"/v1/jobs/{id}/retry" in failed["error"]["hint"]
        assert failed["building"] is None
        assert (await client.post(f"/v1/jobs/{id}/retry")).status_code == 202
        await building(client, id)
    assert catalog.job(id).attempt == 2


def kept(artifacts: Artifacts, version: Version, folder: Path, job: str) -> KeptPlan:
    """A plan in the store."""
    folder.mkdir()
    (folder / "model.plan").write_bytes(job.encode())
    source = version.files["model.echo"]
    key = key_of(version, "model.echo", {"device": "b"})
    place = files_of(key, job, 1)
    files, size = put_files(artifacts, folder, place)
    return KeptPlan(
        key=key, source=source, built_for={}, folder=place, files=files, bytes=size, job=job, created_at=now()
    )


def test_who_is_first_stands_and_what_nobody_needs_is_swept(
    publish: Publish, artifacts: Artifacts, catalog: Catalog, tmp_path: Path
) -> None:
    version = publish(format="echo")
    first, second = (kept(artifacts, version, tmp_path / name, name) for name in ("first", "second"))
    assert publish_plan(artifacts, first) == first
    assert publish_plan(artifacts, second) == first
    assert sweep(artifacts, catalog, 3600) == 0  # it may be on its way
    assert sweep(artifacts, catalog, -60) == 1  # the second's file
    assert read_plan(artifacts, first.key) == first
    assert artifacts.get_bytes(f"{first.folder}/model.plan") == b"first"
    remove_version(artifacts, catalog, "net", 1)
    sweep(artifacts, catalog, -60)
    assert list(artifacts.keys("plans")) == []


def test_what_a_plan_is_told_apart_by() -> None:
    at = datetime.now(UTC).isoformat()
    version = Version.model_validate(
        {
            "name": "net", "version": 1, "format": "tensorrt", "folder": "f", "files": {"model.onnx": "a"}, "bytes": 1,
            "signature": {"inputs": [{"name": "x", "shape": [-1, 3]}]}, "made_by": {"job": "j", "spec": {}},
            "created_at": at, "details": {"precision": "fp16", "max_batch": 8, "report": {"at": at}},
        }
    )  # fmt: skip
    ties = {"version": "11.4.0", "device": "NVIDIA H200", "compute_capability": "9.0"}
    key = key_of(version, "model.onnx", ties)
    assert key == key_of(version.but(version=2, details=version.details | {"report": {}}), "model.onnx", ties)
    others = [
        key_of(version.but(files={"model.onnx": "b"}), "model.onnx", ties),
        key_of(version.but(details=version.details | {"max_batch": 9}), "model.onnx", ties),
        key_of(version, "model.onnx", ties | {"version": "11.4.1"}),
    ]
    assert len({key, *others}) == 4
    assert queue_of("tensorrt", ties) == "gpu-tensorrt-9.0-nvidia-h200-11.4.0" != queue_of("tensorrt_rtx", ties)
    assert os.environ.get("ECHO_DEVICE") is None
