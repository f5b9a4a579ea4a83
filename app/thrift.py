"""Memory that was freed and is still this process': glibc keeps it for itself, until somebody asks."""

from __future__ import annotations

from collections.abc import Callable

from app.memory import resident_bytes, trim
from app.settings import MiB

_MUCH = 48 * MiB  # above what the process can do with; less is needed again soon
_PAUSE_S = 5.0


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
        self._least = 0  # what the process was seen to need; 0: not looked at yet
        self._again = 0.0

    def look(self, held: int, now: float) -> None:
        """held: bytes that requests and answers hold now. now: seconds on any clock that goes on."""
        resident = self._resident()
        if not self._least or resident < self._least:
            self._least = resident
        if resident - self._least <= _MUCH or held > _MUCH // 4 or now < self._again:
            return
        self._again = now + _PAUSE_S
        self._least = 0  # whatever is there at the next look is needed: an engine that was loaded meanwhile
        self._spend(self._give_back)
