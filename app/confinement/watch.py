"""What a confined child uses that no limit of the kernel counts, looked at from outside. Standard library only."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from app.confinement.child import most_threads

PERIOD_S = 0.1  # between two looks
IDLE_S = 60.0  # for which a child may do nothing: its file lies on a disk of ours
_SPARE = 256 * 1024 * 1024  # stacks, and what libraries change of themselves: RLIMIT_DATA does not count it


class Broken(NamedTuple):
    """told: what it did, to go behind "reading it"."""

    code: str
    told: str


class Used(NamedTuple):
    """memory: bytes that are no file's, with its page tables, in memory and swapped out. ticks: of its CPU time."""

    threads: int
    memory: int
    ticks: int


class Watch:
    """memory: bytes that it may use. patience_s: for all that it does."""

    def __init__(self, pid: int, memory: int, patience_s: float) -> None:
        self._pid, self._most, self._patience_s = pid, memory + _SPARE, patience_s
        self._began = self._moved = time.monotonic()
        self._ticks = -1

    def broken(self) -> Broken | None:
        """What it does that it may not, if anything; nothing of one that is gone."""
        now, used = time.monotonic(), used_by(self._pid)
        if used is None:
            return None
        if used.ticks != self._ticks:
            self._ticks, self._moved = used.ticks, now
        if used.threads > most_threads():
            return Broken("too_many_threads", f"started {used.threads} threads")
        if used.memory > self._most:
            return Broken("too_much_memory", f"took {used.memory / 2**30:.1f} GiB of memory")
        if now - self._began > self._patience_s:
            return Broken("too_slow", f"took longer than {self._patience_s:.0f} seconds")
        if now - self._moved > IDLE_S:
            return Broken("too_slow", f"stood still for {IDLE_S:.0f} seconds")
        return None


def used_by(pid: int) -> Used | None:
    """None for one that is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123
            status = dict(line.split(b":", 1) for line in file if b":" in line)
        ticks = sum(map(int, Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[11:13]))
    except OSError:
        return None
    if b"VmPTE" not in status:  # it has ended, and nobody has asked how
        return None
    parts = (int(status.get(name, b"0").split()[0]) for name in (b"RssAnon", b"VmSwap", b"VmPTE"))
    return Used(int(status[b"Threads"]), sum(parts) * 1024, ticks)
