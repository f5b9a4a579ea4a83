"""Memory that was freed and is still this process': glibc keeps it for itself, until somebody asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from app.memory import resident_bytes, trim
from app.settings import MiB

_MUCH = 48 * MiB  # above what the process can do with; less is needed again soon
_PAUSE_S, _LONGEST_S = 5.0, 600.0


class Thrift:
    """Looks now and then at the memory of a process, and has given back what large bodies, pictures and answers have
    left behind once they are gone. give_back: called in a thread by `spend`."""

    def __init__(
        self,
        spend: Callable[[Callable[[], None]], object],
        resident: Callable[[], int] = resident_bytes,
        give_back: Callable[[], None] = trim,
    ) -> None:
        self._spend = spend
        self._resident = resident
        self._give_back = give_back
        self._least = 0  # what the process was seen to need since it last gave something back; 0: not looked at yet
        self._lowest = 0  # since it began
        self._again, self._late = 0.0, 0.0
        self._pause_s = _PAUSE_S

    def look(self, held: int, now: float) -> None:
        """held: bytes that requests and answers hold now. now: seconds on any clock that goes on."""
        resident = self._resident()
        self._least = min(self._least or resident, resident)
        self._lowest = min(self._lowest or resident, resident)
        if resident - self._lowest <= _MUCH:
            self._pause_s = _PAUSE_S
            return
        # What it still had when it last gave something back may be an engine, or was on its way out just then.
        wanted = resident - self._least > _MUCH or now >= self._late
        if not wanted or held > _MUCH // 4 or now < self._again:
            return
        self._again, self._late = now + _PAUSE_S, now + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_S)
        self._least = 0
        self._spend(self._give_back)


async def keep_thrifty() -> None:
    """For a process that answers no HTTP itself: until it is cancelled."""
    loop = asyncio.get_running_loop()
    thrift = Thrift(lambda work: loop.run_in_executor(None, work))
    while True:
        thrift.look(0, loop.time())
        await asyncio.sleep(1)
