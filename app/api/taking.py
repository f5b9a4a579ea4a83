"""What /predict and the Open Inference Protocol do alike: deadlines, lanes, and threads for what takes long."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from app.api.hot import Ask, Told
from app.errors import TAKEN_DOWN, DeadlineExceeded, NotFound, Problem, Unavailable, Unprocessable
from app.serving.served import ServedLane

P = ParamSpec("P")
T = TypeVar("T")
MANY_JSON = 64 * 1024  # JSON above this is decoded in a thread
HUGE_JSON = 4 * 1024 * 1024  # as Python's objects it takes ten times that: never two at a time
_one_by_one = ThreadPoolExecutor(1, thread_name_prefix="decode-huge")


def deadline_of(ask: Ask) -> float | None:
    """Of the header X-Timeout-Ms, on time.monotonic's clock. Raises Unprocessable for a header that is no number of
    milliseconds; DeadlineExceeded for 0."""
    given = ask.headers.get(b"x-timeout-ms")
    if given is None:
        return None
    try:
        milliseconds = float(given)
    except ValueError:
        milliseconds = math.nan
    if not 0 <= milliseconds < math.inf:
        told = given[:40].decode("latin-1")
        raise Unprocessable(
            f"X-Timeout-Ms must be a number of milliseconds, not {told!r}", code="bad_timeout", hint="such as 250"
        )
    if milliseconds == 0:
        raise DeadlineExceeded("X-Timeout-Ms is 0: the deadline has passed already")
    return ask.came + milliseconds / 1e3


async def lane_of(ask: Ask, deadline: float | None = None) -> ServedLane:
    """One that sleeps is loaded, and waited for. Raises NotFound, Unavailable, Overloaded, DeadlineExceeded."""
    try:
        return ask.fleet.lane(ask.name, ask.version)
    except (NotFound, Unavailable):
        return await ask.fleet.find(ask.name, ask.version, deadline=deadline)


async def answered(ask: Ask, deadline: float | None, answer: Callable[[ServedLane], Awaitable[Told]]) -> Told:
    """What `answer` gives for the lane that serves; asked once more where a new version was swapped in meanwhile."""
    for again in (True, False):
        with await lane_of(ask, deadline) as lane:
            try:
                return await answer(lane)
            except Problem as problem:
                if problem.code != TAKEN_DOWN or not again:
                    raise
    raise AssertionError("the loop above returns or raises")


async def aside(ask: Ask, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """In a thread, so that other requests go on meanwhile."""
    return await asyncio.get_running_loop().run_in_executor(ask.fleet.decoding, partial(work, *given, **named))


async def one_by_one(work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """In the one thread that there is for what takes much memory."""
    return await asyncio.get_running_loop().run_in_executor(_one_by_one, partial(work, *given, **named))
