"""Answers that clients do not take: what they hold in memory is bounded."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from app.settings import MiB

if TYPE_CHECKING:
    from asyncio import Transport

log = logging.getLogger("enginesmith.http")
_MOST_BYTES = 256 * MiB


class Untaken:
    """The answers that clients have not taken to their end, the oldest first; each holds all of its memory until then.
    most: bytes of them all; above it the oldest connections are ended."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._sizes: dict[Transport, int] = {}
        self.bytes = 0  # no less than there are

    def add(self, transport: Transport, size: int) -> None:
        """An answer of that size has been written to a connection."""
        if not transport.get_write_buffer_size():
            return
        self._sizes.pop(transport, None)
        self._sizes[transport] = size
        self.bytes += size
        if self.bytes > self.most:
            self.look()
        if self.bytes <= self.most:
            return
        log.warning("%d clients do not take their answers, of %d bytes together", len(self._sizes), self.bytes)
        for waiting in list(self._sizes):
            if self.bytes <= self.most // 4 * 3:
                break
            waiting.abort()
            self.bytes -= self._sizes.pop(waiting)

    def look(self) -> None:
        """Forgets those that have been taken by now."""
        self._sizes = {t: size for t, size in self._sizes.items() if not t.is_closing() and t.get_write_buffer_size()}
        self.bytes = sum(self._sizes.values())


untaken = Untaken(_MOST_BYTES)  # one per process, as there is one server
