"""What /predict and the Open Inference Protocol do alike: deadlines, lanes, and threads for what takes long."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from app.api.hot import Ask, Told
from app.errors import TAKEN_DOWN, DeadlineExceeded, NotFound, Problem, Unavailable, Unprocessable
from app.serving.served import ServedLane

_NUMBER = re.compile(rb"\s*(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\s*")
_LONGEST_MS = 24 * 3600 * 1e3
P = ParamSpec("P")
T = TypeVar("T")
MANY_JSON = 64 * 1024  # JSON above this is decoded in a thread
HUGE_JSON = 4 * 1024 * 1024  # as Python's objects it takes ten times that: never two at a time
_REFUSALS = (400, 413, 415, 422)  # of what a request says
_one_by_one = ThreadPoolExecutor(1, thread_name_prefix="decode-huge")


def deadline_of(ask: Ask) -> float | None:
    """Of the header X-Timeout-Ms, on time.monotonic's clock. Raises Unprocessable for a header that is no number of
    milliseconds."""
    given = ask.headers.get(b"x-timeout-ms")
    if given is None:
        return None
    if not _NUMBER.fullmatch(given):
        detail = f"X-Timeout-Ms must be a number of milliseconds, not {given[:40].decode('latin-1')!r}"
        errors = [{"loc": ["header", "X-Timeout-Ms"], "msg": detail}]
        raise Unprocessable(detail, code="bad_timeout", hint="such as 250", errors=errors)
    return ask.came + min(_LONGEST_MS, float(given)) / 1e3


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
            if deadline == ask.came:
                raise DeadlineExceeded("X-Timeout-Ms is 0: the deadline has passed already")
            try:
                return await _answered(ask, lane, answer)
            except Problem as problem:
                if problem.code != TAKEN_DOWN or not again:
                    raise
    raise AssertionError("the loop above returns or raises")


async def _answered(ask: Ask, lane: ServedLane, answer: Callable[[ServedLane], Awaitable[Told]]) -> Told:
    """What a canary refuses the main version is asked for: nobody is to get a refusal that depends on chance."""
    try:
        return await answer(lane)
    except Problem as problem:
        main = ask.fleet.main_beside(ask.name, lane) if problem.status in _REFUSALS and ask.version is None else None
        if main is None:
            raise
    with main:
        told = await answer(main)
    lane.blame()
    return told


async def aside(ask: Ask, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """In a thread, so that other requests go on meanwhile."""
    return await asyncio.get_running_loop().run_in_executor(ask.fleet.decoding, partial(work, *given, **named))


async def one_by_one(work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """In the one thread that there is for what takes much memory."""
    return await asyncio.get_running_loop().run_in_executor(_one_by_one, partial(work, *given, **named))
