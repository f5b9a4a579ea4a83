"""What Prometheus is told of jobs, workers and room."""

from __future__ import annotations

import asyncio
import re
import shutil
import tomllib
from pathlib import Path

from keyed import replica

from app.domain.records import Job, now
from app.domain.webhooks import make
from app.operating import Store, StoreWatch, look
from app.queue import Queue
from app.room import Room
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog


async def test_jobs_workers_and_room_are_told(settings: Settings, catalog: Catalog, redis_url: str) -> None:
    for id, queue in (("one", "cpu"), ("two", "cpu"), ("three", "gpu")):
        made = catalog.add(Job(id=id, kind="train", spec={"kind": "train"}, queue=queue, created_at=now()))
        Queue(redis_url).enqueue(made)
    catalog.moved("three", was={"queued"}, to="running", attempt=1, lease_s=60)
    catalog.moved("one", was={"queued"}, to="cancelled")
    catalog.add(Job(id="four", kind="train", spec={"kind": "train"}, queue="cpu", created_at=now()))
    catalog.announce_worker({"id": "w", "queues": ["gpu", "cpu"], "count": 2})
    hook = make("http://127.0.0.1:1/hook", ("job.failed",), "a-secret-of-sixteen")
    catalog.webhooks.add(hook)
    Artifacts(settings.artifacts_url).put_bytes(b"bytes", "staging/some/bytes")
    async with replica(settings.model_copy(update={"reap_s": 0.05, "store_bytes": 7_000_000})) as client:
        for _ in range(100):
            text = (await client.get("/metrics")).text
            if "enginesmith_jobs{" in text and "enginesmith_store_bytes" in text:
                break
            await asyncio.sleep(0.05)
    told = dict(re.findall(r"^(enginesmith_\S+) (\S+)$", text, re.M))
    assert told['enginesmith_jobs{queue="cpu",status="queued"}'] == "2.0"
    assert told['enginesmith_jobs{queue="gpu",status="running"}'] == "1.0"
    assert told['enginesmith_jobs_waiting{queue="cpu"}'] == "2.0"
    assert told['enginesmith_workers{queue="gpu"}'] == "2.0"
    assert told['enginesmith_jobs_ended_total{kind="train",status="cancelled"}'] == "1.0"
    assert told["enginesmith_redis_up"] == told["enginesmith_store_up"] == "1.0"
    assert float(told["enginesmith_redis_memory_bytes"]) > 10_000
    assert float(told["enginesmith_store_bytes"]) == 5.0
    assert told["enginesmith_store_limit_bytes"] == "7e+06"
    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as project:
        assert told[f'enginesmith_build_info{{version="{tomllib.load(project)["project"]["version"]}"}}'] == "1.0"
    assert told[f'enginesmith_webhook_deliveries{{outcome="waiting",webhook="{hook.id}"}}'] == "0.0"
    assert float(told["enginesmith_disk_free_bytes"]) > float(told["enginesmith_disk_reserve_bytes"]) > 0


def test_a_redis_that_is_gone_is_seen(settings: Settings, artifacts: Artifacts) -> None:
    gone = Catalog.open(settings, "redis://127.0.0.1:1/0", patience_s=0)
    seen = look(gone, Queue("redis://127.0.0.1:1/0"), Room(settings, artifacts, gone))
    assert not seen.redis
    assert seen.disk is not None


def test_a_store_that_is_gone_is_seen_and_one_that_is_back(settings: Settings, catalog: Catalog) -> None:
    artifacts = Artifacts(settings.artifacts_url)
    watch = StoreWatch(artifacts, Room(settings, artifacts, catalog), 0)
    assert artifacts.folder is not None
    shutil.rmtree(artifacts.folder)
    assert watch.look() == Store(False, None, 0)
    artifacts.folder.mkdir()
    assert watch.look() == Store(True, 0, 0)
