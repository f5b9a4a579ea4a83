"""What Prometheus is told of jobs, workers and room."""

from __future__ import annotations

import asyncio
import re

from keyed import replica

from app.domain.records import Job, now
from app.domain.webhooks import make
from app.operating import look
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
    catalog.announce_worker({"id": "w", "queues": ["gpu", "cpu"], "count": 2})
    hook = make("http://127.0.0.1:1/hook", ("job.failed",), "a-secret-of-sixteen")
    catalog.webhooks.add(hook)
    async with replica(settings.model_copy(update={"reap_s": 0.05})) as client:
        for _ in range(100):
            text = (await client.get("/metrics")).text
            if "enginesmith_jobs{" in text:
                break
            await asyncio.sleep(0.05)
    told = dict(re.findall(r"^(enginesmith_\S+) (\S+)$", text, re.M))
    assert told['enginesmith_jobs{queue="cpu",status="queued"}'] == "2.0"
    assert told['enginesmith_jobs{queue="gpu",status="running"}'] == "1.0"
    assert told['enginesmith_jobs_waiting{queue="cpu"}'] == "2.0"
    assert told['enginesmith_workers{queue="gpu"}'] == "2.0"
    assert told["enginesmith_redis_up"] == "1.0"
    assert told[f'enginesmith_webhook_deliveries{{outcome="waiting",webhook="{hook.id}"}}'] == "0.0"
    assert float(told["enginesmith_disk_free_bytes"]) > float(told["enginesmith_disk_reserve_bytes"]) > 0


def test_a_redis_that_is_gone_is_seen(settings: Settings, artifacts: Artifacts) -> None:
    gone = Catalog.open(settings, "redis://127.0.0.1:1/0", patience_s=0)
    seen = look(gone, Queue("redis://127.0.0.1:1/0"), Room(settings, artifacts, gone))
    assert not seen.redis
    assert seen.disk is not None
