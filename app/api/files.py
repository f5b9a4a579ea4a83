"""Downloads of immutable objects: whole, in ranges, or not at all when the client has them."""

from __future__ import annotations

import asyncio
import re

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.errors import RangeNotSatisfiable
from app.storage.artifacts import Artifacts

_RANGE = re.compile(r"^bytes=(\d*)-(\d*)$", re.ASCII)


async def file_response(request: Request, artifacts: Artifacts, key: str, sha256: str) -> Response:
    """An immutable object, whole or one range of it (RFC 9110)."""
    size = await asyncio.to_thread(artifacts.size, key)
    etag = f'"{sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "X-Content-Type-Options": "nosniff",
    }
    asked = request.headers
    if etag in [t.strip().removeprefix("W/") for t in asked.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    start, end, status = 0, size, 200
    wanted = asked.get("range")
    if wanted and request.method == "GET" and asked.get("if-range", etag) == etag:
        span = _span(wanted, size)
        if span == "unsatisfiable":
            raise RangeNotSatisfiable(
                f"the file has {size} bytes",
                hint="ask for a range inside it",
                headers={"Content-Range": f"bytes */{size}"},
            )
        if isinstance(span, tuple):
            start, end = span
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type="application/octet-stream")
    chunks = artifacts.read(key, start, end)
    return StreamingResponse(chunks, status_code=status, headers=headers, media_type="application/octet-stream")


def _span(header: str, size: int) -> tuple[int, int] | str | None:
    """(start, end excluded) of a Range header, "unsatisfiable", or None for what may be ignored."""
    found = _RANGE.match(header.strip().replace(" ", ""))
    if not found or not (found[1] or found[2]) or max(len(found[1]), len(found[2])) > 18:
        return None  # several ranges, other units, nonsense: the whole file is a right answer
    if not found[1]:
        length = min(int(found[2]), size)
        return (size - length, size) if length else "unsatisfiable"
    start = int(found[1])
    end = min(int(found[2]) + 1, size) if found[2] else size
    if found[2] and int(found[2]) < start:
        return None
    return (start, end) if start < size else "unsatisfiable"
