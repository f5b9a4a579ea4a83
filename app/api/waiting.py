"""`Prefer: wait=N`, `Idempotency-Key` and the wait for a job's end, which holds no thread."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping

from starlette.requests import Request

from app.domain.records import ENDED, Job
from app.errors import Conflict, NotFound, Unprocessable
from app.storage.catalog import Catalog

LONGEST_S = 60
_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?=$|[,;])", re.IGNORECASE)


def preferred_wait(headers: Mapping[str, str]) -> int:
    """Seconds of `Prefer: wait=N`, at most 60; 0 where it is absent or makes no sense (RFC 7240 has it ignored)."""
    found = _WAIT.search(headers.get("prefer", ""))
    return min(LONGEST_S, int(found[1])) if found else 0


def applied(seconds: int) -> dict[str, str]:
    """The header that says a wait was honoured."""
    return {"Preference-Applied": f"wait={seconds}"} if seconds else {}


async def ended_or(catalog: Catalog, id: str, seconds: float, request: Request) -> Job:
    """The job once it has ended, or after `seconds`, or when nobody waits any more."""
    until = time.monotonic() + seconds
    pause = 0.05
    while True:
        job = await asyncio.to_thread(catalog.job, id)
        left = until - time.monotonic()
        is_over = left <= 0 or getattr(request.app.state, "stopping", False)
        if job.status in ENDED or is_over or await request.is_disconnected():
            return job
        await asyncio.sleep(min(pause, left))
        pause = min(0.25, pause * 1.5)


def idempotency_key(request: Request) -> str | None:
    """Raises Unprocessable for one that is too long or no plain text."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= 255 or not key.isascii() or not key.isprintable():
        raise Unprocessable("Idempotency-Key must be 1 to 255 printable ASCII characters", code="bad_idempotency_key")
    return key


async def same_as_before(catalog: Catalog, key: str, fingerprint: str, id: str) -> Job | None:
    """The job that this key has made before; None when `id` is the one to be made now.

    Raises Conflict when the key came with another request.
    """
    stood, first = await asyncio.to_thread(catalog.remember, key, fingerprint, id)
    if stood != fingerprint:
        raise other_request()
    if first == id:
        return None
    for pause in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0):
        try:
            return await asyncio.to_thread(catalog.job, first)
        except NotFound:  # its twin is being made at this moment
            await asyncio.sleep(pause)
    raise Conflict(
        "the first request with this Idempotency-Key has not finished",
        code="idempotency_pending",
        hint="try again, or with a new key",
        retryable=True,
    )


def other_request() -> Conflict:
    return Conflict(
        "this Idempotency-Key came with another request before",
        code="idempotency_conflict",
        hint="take a new key for a new request",
    )
