"""The app: builds the parts, mounts the routes, and looks after lost jobs while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI

from app.api import auth, datasets, deployments, events, health, jobs, kinds, limits, models, predict, problems, report
from app.api.examples import ANY_PROBLEM
from app.observe import Requests
from app.queue import Queue
from app.reaper import reap
from app.serving.fleet import Fleet
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.registry import reindex_if_empty, sweep

log = logging.getLogger("enginesmith.app")
SWEEP_S = 3600.0
PATIENCE_S = 2.0  # a person waits for the answer; workers are more patient
# predict first: the router looks at one after the other, and that is the hot path. kinds before /v1/jobs/{id}.
ROUTERS = (predict, models, datasets, kinds, jobs, events, report, deployments, health)


def create_app(settings: Settings) -> FastAPI:
    """Raises Conflict for settings that would let strangers in, Unprocessable for keys that make no sense."""
    keys = auth.parse_keys(settings.api_keys)
    auth.check_exposure(settings, keys)
    app = FastAPI(
        title="Enginesmith",
        version="0.1.0",
        description="Give it a trained model; it gives back a faster one, and serves it.",
        lifespan=_lifespan,
        redirect_slashes=False,
        responses=ANY_PROBLEM,
    )
    app.state.settings = settings
    for module in ROUTERS:
        app.include_router(module.router)
    problems.install(app)
    # Added last is met first.
    app.add_middleware(auth.Keys, keys=keys)
    app.add_middleware(limits.Limits, settings=settings)
    app.add_middleware(problems.LastResort)
    app.add_middleware(Requests)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    if settings.redis_url is None:
        raise RuntimeError("ENGINESMITH_REDIS_URL is not set; `enginesmith serve` starts a store and sets it")
    app.state.stopping = False
    app.state.artifacts = artifacts = await asyncio.to_thread(Artifacts, settings.artifacts_url)
    app.state.catalog = catalog = Catalog.open(settings, settings.redis_url, patience_s=PATIENCE_S)
    app.state.queue = queue = Queue(settings.redis_url)
    app.state.fleet = fleet = Fleet(settings, catalog, artifacts)
    learned = await asyncio.to_thread(_learn, artifacts, catalog)
    await fleet.start()
    reaping = asyncio.create_task(_look_after(artifacts, catalog, queue, settings, learned))
    try:
        yield
    finally:
        app.state.stopping = True
        reaping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reaping
        await fleet.stop()
        catalog.redis.close()
        queue.redis.close()


def _learn(artifacts: Artifacts, catalog: Catalog) -> bool:
    """A Redis that has lost everything learns what exists from the store. False where it could not be asked."""
    try:
        found = reindex_if_empty(artifacts, catalog)
    except Exception as error:
        log.warning("the index could not be looked at, and is looked at again: %s", error)
        return False
    if found and any(found.values()):
        log.warning("the index was empty and is rebuilt from the store", extra=found)
    return True


async def _look_after(artifacts: Artifacts, catalog: Catalog, queue: Queue, settings: Settings, learned: bool) -> None:
    """Looks for lost jobs for as long as the app runs, and sweeps up every hour."""
    swept = time.monotonic()
    while True:
        await asyncio.sleep(settings.reap_s)
        learned = learned or await asyncio.to_thread(_learn, artifacts, catalog)
        try:
            await asyncio.to_thread(reap, catalog, queue, settings)
            if time.monotonic() - swept > SWEEP_S:
                swept = time.monotonic()
                await asyncio.to_thread(sweep, artifacts, catalog, settings.sweep_after_s)
        except Exception as error:
            log.warning("looking after the jobs failed, and is tried again: %s", error)
