"""What RFC 9112 has a server refuse by a request's headers, and the parser lets through."""

from __future__ import annotations

from collections.abc import Sequence

from app.errors import BadRequest, NotSupported, Problem


def wrong_head(headers: Sequence[tuple[bytes, bytes]]) -> Problem | None:
    """Why a request must be refused, if it must. headers: with lower-case names. One without Host, which nothing here
    depends on, is let through all the same: hand-written clients leave it out."""
    names = [name for name, _ in headers]
    if names.count(b"host") > 1:
        return BadRequest("the header Host is there several times", code="bad_http", hint="send it once")
    if b"transfer-encoding" in names:
        codings = [value for name, value in headers if name == b"transfer-encoding"]
        if len(codings) > 1 or codings[0].strip().lower() != b"chunked":
            told = b", ".join(codings)[:80].decode("latin-1")
            return NotSupported(
                f"Transfer-Encoding {told!r} is not taken here", hint="send the body as chunked, or with Content-Length"
            )
    return None


def path_of(target: bytes) -> str:
    """The path that a request's target names, as far as it has come."""
    path = target.decode("latin-1").partition("?")[0]
    return path if path.startswith("/") else ""
