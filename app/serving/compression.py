"""gzip and deflate, for bodies of requests and of answers. What a body unpacks to is bounded."""

from __future__ import annotations

import zlib

from app.errors import BadRequest, NotSupported, TooLarge

ENCODINGS = ("gzip", "deflate")
# Shorter answers are sent as they are: compressing them costs more than sending them.
WORTH_BYTES = 8 * 1024
_WINDOWS = {"gzip": 31, "deflate": 15}
_FASTEST = 1
_MOST_MEMBERS = 16


def coding(given: str) -> str | None:
    """The coding of a body by its Content-Encoding; None where there is none. Raises NotSupported."""
    name = given.strip().lower()
    if name in ("", "identity"):
        return None
    if name not in ENCODINGS:
        raise NotSupported(
            f"Content-Encoding {given[:80]!r} is not taken here", hint="send the body as gzip, as deflate, or as it is"
        )
    return name


def unpacked(body: bytes, coding: str, limit: int) -> bytes:
    """What a body unpacks to. limit: how many bytes that may be. Raises BadRequest, TooLarge."""
    rest, found, left = body, b"", limit
    try:
        for _ in range(_MOST_MEMBERS):
            window = _WINDOWS[coding]
            # RFC 9110 means zlib's format by "deflate", and some clients send the bare one.
            if coding == "deflate" and not _begins_as_zlib(rest):
                window = -15
            stream = zlib.decompressobj(window)
            part = stream.decompress(rest, left + 1)
            if len(part) > left:
                raise TooLarge(
                    f"the body unpacks to more than {limit} bytes, the most that is taken",
                    hint="send less at a time, or have ENGINESMITH_MAX_PREDICT_BYTES raised",
                )
            if not stream.eof:
                raise BadRequest(f"the body ends in the middle of its {coding}", code="bad_encoding")
            found, left, rest = found + part if found else part, left - len(part), stream.unused_data
            if not rest:
                return found
            if coding != "gzip":  # which alone may consist of several
                break
        raise BadRequest(f"{len(rest)} bytes follow the end of the {coding}", code="bad_encoding")
    except zlib.error as error:
        raise BadRequest(f"the body is no {coding}: {error}", code="bad_encoding") from None


def _begins_as_zlib(body: bytes) -> bool:
    return len(body) >= 2 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0


def accepted(accept_encoding: str) -> str | None:
    """The coding that an Accept-Encoding asks for first; None for an answer as it is."""
    best, most = None, 0.0
    for part in accept_encoding.lower().split(","):
        name, _, parameter = part.strip().partition(";")
        quality = 1.0
        if parameter.strip().startswith("q="):
            try:
                quality = float(parameter.strip()[2:])
            except ValueError:
                continue
        if name.strip() in ENCODINGS and quality > most:
            best, most = name.strip(), quality
    return best


def packed(body: bytes, coding: str) -> bytes:
    return zlib.compress(body, _FASTEST, _WINDOWS[coding])
