"""From a checked request to a queued job: idempotency, the catalog, the queue, the wait for its end."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from app import tracing
from app.api.auth import caller
from app.api.body import Json
from app.api.told import job_json
from app.api.waiting import applied, ended_or, idempotency_key, preferred_wait, same_as_before
from app.domain.records import Job
from app.errors import Unavailable
from app.queue import Queue
from app.room import Coming, Room
from app.storage.catalog import Catalog

log = logging.getLogger("enginesmith.jobs")


def new_job_id() -> str:
    return uuid.uuid4().hex


def fingerprint(*parts: Any) -> str:
    """What makes two requests the same."""
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


async def submit_once(
    request: Request, catalog: Catalog, queue: Queue, mark: str, make: Callable[[str], Awaitable[Job]]
) -> tuple[Job, bool]:
    """The job of this request and whether it is new: `make(id)` builds one unless its Idempotency-Key made one before.

    Raises Conflict for a key that came with another request, and whatever `make` raises.
    """
    id = new_job_id()
    holder = caller(request.scope)
    key = idempotency_key(request)
    if key is not None:
        before = await same_as_before(catalog, key, mark, id)
        if before is not None:
            return before, False
    try:
        await asyncio.to_thread(request.app.state.room.check, 0, holder)
        made = await make(id)
        if holder is not None:
            made = made.but(key=holder.owner)
        if tracing.on:
            made = made.but(traceparent=tracing.traceparent())
        job = await asyncio.to_thread(catalog.add, made, holder.limits.jobs if holder else None)
    except BaseException:
        if key is not None:
            await asyncio.shield(asyncio.to_thread(catalog.forget, key))
        raise
    try:
        await asyncio.to_thread(queue.enqueue, job)
    except Unavailable:  # the job exists: the reaper enqueues it when Redis is back
        log.warning("job %s could not be enqueued yet", job.id)
    return job, True


@asynccontextmanager
async def taking(request: Request, *, job: bool) -> AsyncIterator[Coming]:
    """Around an upload, from before its body is read until it is kept. job: whether a job is made of it. Raises
    InsufficientStorage, Overloaded."""
    room: Room = request.app.state.room
    declared = request.headers.get("content-length", "")
    incoming = int(declared) if declared.isdecimal() else 0
    coming = await asyncio.to_thread(room.admit, incoming, caller(request.scope), job=job)
    kept = False
    try:
        yield coming
        kept = True
    finally:
        room.leave(coming, kept=kept)


async def accepted(request: Request, catalog: Catalog, job: Job) -> Response:
    """202 with the job, after the wait that the client prefers."""
    seconds = preferred_wait(request.headers)
    if seconds:
        job = await ended_or(catalog, job.id, seconds, request)
    headers = {"Location": f"/v1/jobs/{job.id}"} | applied(seconds)
    return Json(job_json(job), status_code=202, headers=headers)
