"""One connection of `bench`: HTTP/1.1 over a bare socket. Of an answer it reads the status, and counts the rest."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
NO_LENGTH = "no Content-Length"


@dataclass(frozen=True)
class Target:
    """Where requests go. payloads: whole requests, heads included, sent in turn."""

    host: str
    port: int
    payloads: tuple[bytes, ...]
    tls: ssl.SSLContext | None = None


class Connection(asyncio.Protocol):
    """One request at a time. done(self, status): 200 and so on, or a word for what went wrong."""

    def __init__(self, done: Callable[[Connection, int | str], None]) -> None:
        self.done = done
        self.due = 0.0
        self.busy = False
        self.transport: asyncio.Transport | None = None
        self._head = b""
        self._status = 0
        self._left = -1  # bytes of the answer still to come; -1: its head is not complete yet

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, payload: bytes, due: float) -> None:
        assert self.transport is not None
        self.due, self.busy, self._head, self._left = due, True, b"", -1
        self.transport.write(payload)

    def data_received(self, data: bytes) -> None:
        if not self.busy:
            return self._break("unasked")
        if self._left < 0:
            data = self._head + data if self._head else data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._head = data
                return None
            try:
                self._status = int(data[9:12])
            except ValueError:
                return self._break("no HTTP")
            found = _LENGTH.search(data, 0, end)
            if found is None:
                return self._break(NO_LENGTH)
            self._left = int(found[1]) - (len(data) - end - 4)
        else:
            self._left -= len(data)
        if self._left == 0:
            self.busy = False
            self.done(self, self._status)
        elif self._left < 0:
            self._break("too long")
        return None

    def _break(self, why: str) -> None:
        self.close()
        if self.busy:
            self.busy = False
            self.done(self, why)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self.busy:
            self.busy = False
            self.done(self, "connection lost")

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()
            self.transport = None
