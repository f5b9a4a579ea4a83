"""What a process of the app opens and closes again: both stores and the queue; and, in one process of a service, the
looking after lost jobs and old files."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import NamedTuple

from app import tracing
from app.operating import OPERATING, STORE_LOOK_S, StoreWatch, look
from app.queue import Queue
from app.reaper import reap
from app.room import Room
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.kept_deployments import Mirror
from app.storage.registry import reindex_if_lost
from app.storage.sweeping import sweep
from app.webhooks.addresses import parse_allowed
from app.webhooks.sending import Sender

log = logging.getLogger("enginesmith.app")
SWEEP_S = 3600.0
# A person waits for the answer; workers are more patient.
PATIENCE_S = 2.0
STORE_PATIENCE_S = 8.0


class Parts(NamedTuple):
    settings: Settings
    artifacts: Artifacts
    catalog: Catalog
    queue: Queue


@contextlib.asynccontextmanager
async def opened(settings: Settings, process: str) -> AsyncIterator[Parts]:
    """process: what this one calls itself in traces. Raises RuntimeError where no Redis is named."""
    if settings.redis_url is None:
        raise RuntimeError("ENGINESMITH_REDIS_URL is not set; `enginesmith serve` starts a store and sets it")
    tracing.start(settings, process)
    artifacts = await asyncio.to_thread(partial(Artifacts, settings.artifacts_url, patience_s=STORE_PATIENCE_S))
    catalog = Catalog.open(settings, settings.redis_url, patience_s=PATIENCE_S)
    queue = Queue(settings.redis_url)
    try:
        yield Parts(settings, artifacts, catalog, queue)
    finally:
        catalog.redis.close()
        queue.redis.close()
        await asyncio.to_thread(tracing.stop)


@contextlib.asynccontextmanager
async def looked_after(parts: Parts) -> AsyncIterator[None]:
    """Rebuilds an index that was lost, now and whenever; while inside, brings lost jobs back, keeps deployments in the
    store, tells webhooks, and sweeps up every hour."""
    learned = await asyncio.to_thread(_learn, parts.artifacts, parts.catalog)
    sender = Sender(parts.artifacts, parts.catalog, parse_allowed(parts.settings.webhooks_allow))
    tasks = [asyncio.create_task(_look_after(parts, learned)), asyncio.create_task(sender.run())]
    tasks.append(asyncio.create_task(_watch_store(parts)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _learn(artifacts: Artifacts, catalog: Catalog) -> bool:
    """A Redis that has lost everything learns what exists from the store. False where it could not be asked."""
    try:
        found = reindex_if_lost(artifacts, catalog)
    except Exception as error:
        log.warning("the index could not be looked at, and is looked at again: %s", error)
        return False
    if found and any(found.values()):
        log.warning("Redis was empty, and has what it lost from the store again", extra=found)
    return True


async def _watch_store(parts: Parts) -> None:
    room = Room(parts.settings, parts.artifacts, parts.catalog)
    watch = StoreWatch(parts.artifacts, room, parts.settings.store_bytes)
    while True:
        try:
            OPERATING.store = await asyncio.to_thread(watch.look)
        except Exception as error:
            log.warning("looking at the artifact store failed, and is tried again: %s", error)
        await asyncio.sleep(STORE_LOOK_S)


async def _look_after(parts: Parts, learned: bool) -> None:
    settings, artifacts, catalog, queue = parts
    swept = time.monotonic()
    mirror, room = Mirror(artifacts, catalog), Room(settings, artifacts, catalog)
    while True:
        await asyncio.sleep(settings.reap_s)
        try:
            learned = learned and await asyncio.to_thread(catalog.remembers)
            learned = learned or await asyncio.to_thread(_learn, artifacts, catalog)
            await asyncio.to_thread(mirror.look)
            await asyncio.to_thread(reap, catalog, queue, settings)
            OPERATING.seen = await asyncio.to_thread(look, catalog, queue, room)
            if time.monotonic() - swept > SWEEP_S:
                swept = time.monotonic()
                await asyncio.to_thread(
                    sweep, artifacts, catalog, settings.sweep_after_s, settings.trials_bytes, settings.jobs_kept_s
                )
        except Exception as error:
            OPERATING.seen = await asyncio.to_thread(look, catalog, queue, room)
            log.warning("looking after the jobs failed, and is tried again: %s", error)
