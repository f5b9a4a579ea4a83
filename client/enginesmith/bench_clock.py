"""When `bench` acts: an event loop, and a timer that is more exact than the loop's own."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1


@contextlib.contextmanager
def ticking(
    loop: asyncio.AbstractEventLoop, tick: Callable[[], None], due: Callable[[], float | None]
) -> Iterator[None]:
    """Has `tick` called at the moments that `due` names (time.perf_counter), one after the other, until that is None.

    Event loops round their timers up to a millisecond, which would be counted as latency; the kernel's own (Linux) are
    exact.
    """
    handle: asyncio.TimerHandle | None = None
    timer = _KernelTimer.make()

    def again() -> None:
        nonlocal handle
        tick()
        at = due()
        if timer is not None:
            timer.set(at)
        else:
            handle = None if at is None else loop.call_later(max(0.0, at - time.perf_counter()), again)

    if timer is not None:
        loop.add_reader(timer.fd, again)
    again()
    try:
        yield
    finally:
        if handle is not None:
            handle.cancel()
        if timer is not None:
            loop.remove_reader(timer.fd)
            os.close(timer.fd)


class _KernelTimer:
    """A descriptor that is readable from the moment that was set, on the clock that perf_counter shows too."""

    def __init__(self, library: ctypes.CDLL, fd: int) -> None:
        self._library, self.fd = library, fd

    @classmethod
    def make(cls) -> _KernelTimer | None:
        """None where there are none."""
        if sys.platform != "linux":
            return None
        library = ctypes.CDLL(None)
        fd: int = library.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        return cls(library, fd) if fd >= 0 else None

    def set(self, at: float | None) -> None:
        """Also takes back that it is readable. None: never."""
        seconds, rest = divmod(at or 0.0, 1)
        value = (ctypes.c_long * 4)(0, 0, int(seconds), int(rest * 1e9))
        self._library.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, value, None)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs one point. With uvloop where it is installed: half the CPU for the generator."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)
