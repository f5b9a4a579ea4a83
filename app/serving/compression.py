"""gzip and deflate, for bodies of requests and of answers. What a body unpacks to is bounded."""

from __future__ import annotations

import zlib
from typing import Any

from app.errors import BadRequest, TooLarge, UnsupportedMedia
from app.serving.accept import weighted

ENCODINGS = ("gzip", "deflate")
# Shorter answers are sent as they are: compressing them costs more than sending them.
WORTH_BYTES = 8 * 1024
_WINDOWS = {"gzip": 31, "deflate": 15}
_FASTEST = 1
_MOST_MEMBERS = 16
_PART_BYTES = 1024 * 1024


def coding(given: str) -> str | None:
    """The coding of a body by its Content-Encoding; None where there is none. Raises UnsupportedMedia."""
    name = given.strip().lower()
    if name in ("", "identity"):
        return None
    if name not in ENCODINGS:
        raise UnsupportedMedia(
            f"Content-Encoding {given[:80]!r} is not taken here", hint="send the body as gzip, as deflate, or as it is"
        )
    return name


class Unpacking:
    """What a body unpacks to, part by part: so that whoever takes the parts can count them, and stop.

    limit: how many bytes that may be. Each part is at most a megabyte, or as long as the body where that is more: what
    is left of the body is copied with every part.
    """

    def __init__(self, body: bytes, coding: str, limit: int) -> None:
        self._coding, self._limit, self._left = coding, limit, limit
        self._rest = body
        self._most = max(_PART_BYTES, len(body))
        self._members = 0
        self._stream = self._begin()

    def _begin(self) -> Any:
        self._members += 1
        window = _WINDOWS[self._coding]
        # RFC 9110 means zlib's format by "deflate", and some clients send the bare one.
        if self._coding == "deflate" and not _begins_as_zlib(self._rest):
            window = -15
        return zlib.decompressobj(window)

    def step(self) -> tuple[bytes, bool]:
        """The next part, and whether more comes. Raises BadRequest, TooLarge."""
        most = min(self._most, self._left + 1)
        try:
            part: bytes = self._stream.decompress(self._rest, most)
        except zlib.error as error:
            raise BadRequest(f"the body is no {self._coding}: {error}", code="bad_encoding") from None
        if len(part) > self._left:
            raise TooLarge(
                f"the body unpacks to more than {self._limit} bytes, the most that is taken",
                hint="send less at a time, or have ENGINESMITH_MAX_PREDICT_BYTES raised",
            )
        self._left -= len(part)
        if not self._stream.eof:
            self._rest = self._stream.unconsumed_tail
            if not self._rest and len(part) < most:
                raise BadRequest(f"the body ends in the middle of its {self._coding}", code="bad_encoding")
            return part, True
        self._rest = self._stream.unused_data
        if not self._rest:
            return part, False
        if self._coding != "gzip" or self._members == _MOST_MEMBERS:  # which alone may consist of several
            raise BadRequest(f"{len(self._rest)} bytes follow the end of the {self._coding}", code="bad_encoding")
        self._stream = self._begin()
        return part, True


def _begins_as_zlib(body: bytes) -> bool:
    return len(body) >= 2 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0


def accepted(accept_encoding: str) -> str | None:
    """The coding that an Accept-Encoding asks for first; None for an answer as it is."""
    best, most = None, 0.0
    for name, weight in weighted(accept_encoding):
        if name in ENCODINGS and weight > most:
            best, most = name, weight
    return best


def packed(body: bytes, coding: str) -> bytes:
    return zlib.compress(body, _FASTEST, _WINDOWS[coding])
