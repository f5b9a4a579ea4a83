"""The predictions being received and answered: how much memory their bodies hold, which come too slowly, and which have
been left by their clients."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.types import Message, Receive

from app.api import limits
from app.errors import Overloaded, RequestTimeout
from app.settings import MiB, Settings

# One look at all of them, so often, instead of a timer for each: a client that goes away is noticed that late.
LOOK_S = 0.05
# Bodies up to this size still find room when large ones have taken theirs.
SMALL_BYTES = MiB


class Gone(Exception):
    """The client has closed the connection: there is nobody to answer."""


class Flight:
    """One request. touched: when a part of the body came last. stopped: why its task was cancelled from here."""

    __slots__ = ("_all", "_look", "came", "held", "receive", "receiving", "stopped", "task", "touched")

    def __init__(self, all: Flights, receive: Receive, task: asyncio.Task[Any], came: float) -> None:
        self._all = all
        self.receive = receive
        self.task = task
        self.came = self.touched = came
        self.held = 0
        self.receiving = True
        self.stopped: RequestTimeout | Gone | None = None
        self._look: asyncio.Task[None] | None = None

    def take(self, size: int) -> None:
        """So many bytes more have come, and are held until the request is answered. Raises TooLarge, Overloaded."""
        if self.held + size > self._all.most_each:
            raise limits.too_large(self._all.most_each, limits.PREDICT)
        self.hold(size)

    def hold(self, size: int) -> None:
        """So many bytes more are held, of what a body unpacks to. Raises Overloaded."""
        self.held += size
        self._all.held += size
        if self._all.held > self._all.most and (self.held > SMALL_BYTES or self._all.held > self._all.most_with_small):
            raise Overloaded(
                f"the bodies of requests that are being answered hold {self._all.held} bytes, "
                f"and at most {self._all.most} are kept",
                code="too_many_bytes",
                hint="try again in a second, send less at a time, or have ENGINESMITH_MAX_BODIES_BYTES raised",
                headers={"Retry-After": "1"},
            )

    def stop(self, why: RequestTimeout | Gone) -> None:
        if self.stopped is None:
            self.stopped = why
            self.task.cancel()

    def watch(self) -> None:
        """From now on the client's leaving is heard."""
        self._look = asyncio.get_running_loop().create_task(self._until_gone())

    async def _until_gone(self) -> None:
        message: Message = {"type": ""}
        while message["type"] != "http.disconnect":
            message = await self.receive()
        self.stop(Gone())

    def unwatch(self) -> None:
        if self._look is not None:
            self._look.cancel()


class Flights:
    """All requests of the hot path. held: bytes of their bodies."""

    def __init__(self, settings: Settings) -> None:
        self.held = 0
        self.most_each = settings.max_predict_bytes
        self.most = max(settings.max_bodies_bytes, self.most_each)
        self.most_with_small = self.most + self.most // 4
        self._idle_s, self._total_s = settings.body_idle_s, settings.body_total_s
        self._young: set[Flight] = set()  # those to look at: still receiving, or not watched yet
        self._looks = False

    def enter(self, receive: Receive, came: float) -> Flight:
        task = asyncio.current_task()
        assert task is not None
        flight = Flight(self, receive, task, came)
        self._young.add(flight)
        if not self._looks:
            self._looks = True
            asyncio.get_running_loop().call_later(LOOK_S, self._look)
        return flight

    def leave(self, flight: Flight) -> None:
        """Its answer is known, or it is given up. No cancelling comes from here any more."""
        self._young.discard(flight)
        self.held -= flight.held
        flight.unwatch()

    def _look(self) -> None:
        now = time.monotonic()
        for flight in list(self._young):
            if not flight.receiving:
                if now - flight.came > LOOK_S:
                    self._young.discard(flight)
                    flight.watch()
            elif now - flight.touched > self._idle_s:
                flight.stop(_too_slow(f"nothing of the body came for {self._idle_s:g} s"))
            elif now - flight.came > self._total_s:
                flight.stop(_too_slow(f"the body has not come whole within {self._total_s:g} s"))
        if self._young:
            asyncio.get_running_loop().call_later(LOOK_S, self._look)
        else:
            self._looks = False


def _too_slow(what: str) -> RequestTimeout:
    return RequestTimeout(what)
