"""A job's events as they happen: server-sent events that resume where a lost connection left them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from app.api.auth import caller
from app.api.examples import headers, problems
from app.deps import TheCatalog
from app.domain.records import ENDED
from app.errors import Unavailable
from app.storage.catalog import Catalog

router = APIRouter(tags=["jobs"])
_ID = re.compile(r"^\d{1,20}(?:-\d{1,20})?$", re.ASCII)
_BREAKS = (("\x85".encode(), b"\\u0085"), ("\u2028".encode(), b"\\u2028"), ("\u2029".encode(), b"\\u2029"))
_LOOK_S = 0.2
_PAGE = 1000  # how many events the catalog gives at once
_KEEP_ALIVE_S = 10.0
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@router.get(
    "/v1/jobs/{id}/events",
    summary="State, progress, metrics and log lines as server-sent events",
    description="Every event from the first, or after `Last-Event-ID`; ends when the job has ended. "
    "204 when there is nothing more to come, which tells a browser's EventSource to stop.",
    responses={
        200: {"description": "events `state`, `progress`, `metrics`, `log`", "content": {"text/event-stream": {}}},
        204: {"description": "the job has ended, and all its events were seen"},
        **problems(404),
    },
    response_class=Response,
    openapi_extra=headers("Last-Event-ID"),
)
async def events(id: str, request: Request, catalog: TheCatalog) -> Response:
    after = request.headers.get("last-event-id") or request.query_params.get("last_event_id") or "0"
    if not _ID.match(after):
        after = "0"
    job = await asyncio.to_thread(catalog.job, id)
    if job.ended and after != "0" and not await asyncio.to_thread(catalog.events, id, after):
        return Response(status_code=204)
    return StreamingResponse(_stream(catalog, id, after, request), media_type="text/event-stream", headers=_HEADERS)


async def _stream(catalog: Catalog, id: str, after: str, request: Request) -> AsyncIterator[bytes]:
    yield b"retry: 1000\n\n"
    last_sent = time.monotonic()
    state, key = request.app.state, caller(request.scope)
    while not getattr(state, "stopping", False) and state.keyring.holds(key):  # it may be revoked meanwhile
        try:
            found = await asyncio.to_thread(catalog.events, id, after)
            # A retried job goes on after a terminal event: only the job itself knows whether it has ended for good.
            is_over = (not found or _is_terminal(found[-1])) and await asyncio.to_thread(_has_ended, catalog, id)
        except Unavailable:
            found, is_over = [], False  # the answer has begun: keep the reader, and look again
        if found:
            after = found[-1][0]
            yield b"".join(encode(*event) for event in found)
            last_sent = time.monotonic()
        if is_over:
            return
        if time.monotonic() - last_sent >= _KEEP_ALIVE_S:
            yield b": still here\n\n"
            last_sent = time.monotonic()
        if len(found) < _PAGE:
            await asyncio.sleep(_LOOK_S)


def _has_ended(catalog: Catalog, id: str) -> bool:
    return catalog.job(id).status in ENDED


def encode(id: str, kind: str, data: dict[str, Any]) -> bytes:
    """One event. JSON has no raw line break, so one `data:` line is enough.

    Many readers split lines as Unicode does, at three characters more than the standard says: these are escaped.
    """
    text = orjson.dumps(data)
    for raw, escaped in _BREAKS:
        text = text.replace(raw, escaped)
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (id.encode(), kind.encode(), text)


def _is_terminal(event: tuple[str, str, dict[str, Any]]) -> bool:
    return event[1] == "state" and event[2].get("status") in ENDED
