"""What RFC 9112 has a server refuse by a request's headers, and the parser lets through."""

from __future__ import annotations

from collections.abc import Sequence

from app.errors import BadRequest, NotSupported, Problem


def wrong_head(headers: Sequence[tuple[bytes, bytes]], http_version: str) -> Problem | None:
    """Why a request must be refused, if it must. headers: with lower-case names."""
    names = [name for name, _ in headers]
    if names.count(b"host") != 1 and (b"host" in names or http_version == "1.1"):
        told = "several times" if b"host" in names else "not"
        return BadRequest(
            f"the header Host is {told} there", code="bad_http", hint="send it once, as HTTP/1.1 requires"
        )
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
