"""Multipart bodies as a stream of parts: nothing is kept, in memory or on disk, that the reader did not ask for."""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from app.errors import BadRequest, TooLarge, Unprocessable, UnsupportedMedia

_PLAIN = re.compile(r"[^A-Za-z0-9._+-]+")


@dataclass
class Part:
    """One part. `chunks()` must be read to its end before the next part comes."""

    name: str
    filename: str | None
    content_type: str | None
    _body: MultipartBody = field(repr=False)

    async def chunks(self) -> AsyncIterator[bytes]:
        while (event := await self._body.event()) and event[0] == "data":
            yield event[1]

    async def read(self, most: int) -> bytes:
        """The whole part. Raises TooLarge past `most` bytes."""
        held = bytearray()
        async for chunk in self.chunks():
            held += chunk
            if len(held) > most:
                raise TooLarge(f"the part {self.name!r} is larger than {most} bytes")
        return bytes(held)


class MultipartBody:
    """The multipart body of a request, part by part. Raises BadRequest for one that is cut short or broken."""

    def __init__(self, request: Request) -> None:
        kind, options = parse_options_header(request.headers.get("content-type"))
        if kind.lower() != b"multipart/form-data":
            said = kind.decode("latin-1") or "nothing"
            raise UnsupportedMedia(
                f"this takes multipart/form-data, not {said}", hint="send `file` and `manifest` as parts: curl -F"
            )
        boundary = options.get(b"boundary")
        if not boundary:
            raise BadRequest("the Content-Type names no boundary", code="bad_multipart")
        self._stream = request.stream()
        self._events: deque[tuple[str, bytes]] = deque()
        self._finished = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": lambda: self._put("begin"),
                    "on_header_field": lambda data, start, end: self._put("header", data[start:end]),
                    "on_header_value": lambda data, start, end: self._put("value", data[start:end]),
                    "on_header_end": lambda: self._put("header_end"),
                    "on_headers_finished": lambda: self._put("headers"),
                    "on_part_data": lambda data, start, end: self._put("data", data[start:end]),
                    "on_part_end": lambda: self._put("end"),
                    "on_end": self._finish,
                },
            )
        except FormParserError as error:
            raise _broken(str(error)) from None

    def _put(self, kind: str, data: bytes = b"") -> None:
        self._events.append((kind, data))

    def _finish(self) -> None:
        self._finished = True

    async def event(self) -> tuple[str, bytes] | None:
        """What the parser reports next; None at the end of the body."""
        while not self._events:
            if self._finished:
                return None
            chunk = await anext(self._stream, b"")
            if not chunk:
                raise _broken("it ends before its closing boundary")
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise _broken(str(error)) from None
        return self._events.popleft()

    async def parts(self) -> AsyncIterator[Part]:
        """Each part in turn; what its reader left unread is skipped."""
        seen: set[str] = set()
        while event := await self.event():
            if event[0] != "begin":
                continue
            part = await self._open()
            if part.name in seen:
                raise Unprocessable(f"the part {part.name!r} is there twice", code="doubled_part")
            seen.add(part.name)
            yield part
        async for _ in self._stream:  # what follows the closing boundary means nothing
            pass

    async def _open(self) -> Part:
        headers: dict[bytes, bytes] = {}
        name = value = b""
        while event := await self.event():
            kind, data = event
            if kind == "header":
                name += data
            elif kind == "value":
                value += data
            elif kind == "header_end":
                headers[name.lower().strip()] = value.strip()
                name = value = b""
            else:
                break
        disposition, options = parse_options_header(headers.get(b"content-disposition"))
        if disposition != b"form-data" or b"name" not in options:
            raise _broken("a part has no Content-Disposition with a name")
        filename = options.get(b"filename")
        kind_of = headers.get(b"content-type")
        return Part(
            options[b"name"].decode("utf-8", "replace"),
            None if filename is None else filename.decode("utf-8", "replace"),
            None if kind_of is None else kind_of.decode("latin-1"),
            self,
        )


def safe_filename(given: str | None, fallback: str) -> str:
    """A client's file name as one plain path segment."""
    name = unicodedata.normalize("NFKD", PurePosixPath((given or "").replace("\\", "/")).name)
    name = _PLAIN.sub("_", name).strip("._")[-100:].lstrip("._-")
    return name or fallback


def _broken(why: str) -> BadRequest:
    return BadRequest(f"the multipart body is broken: {why}", code="bad_multipart")
