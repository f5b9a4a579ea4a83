"""POST /v2/models/{name}[/versions/{version}]/infer, the protocol's hot path: bytes → tensors → engine → bytes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

import numpy.typing as npt

from app.api.hot import Ask, Told
from app.errors import BadRequest, DeadlineExceeded, NotFound, Problem, Unavailable, Unprocessable
from app.serving import compression, json_tensors, oip_answer, oip_request
from app.serving.lane import Lane
from app.serving.oip import Form, form_of

P = ParamSpec("P")
T = TypeVar("T")
Inputs = dict[str, npt.NDArray[Any]]
# Above these a thread does the work, so that other requests go on meanwhile.
_MANY_JSON, _MANY_BYTES = 64 * 1024, 2 * 1024 * 1024
_HUGE_JSON = 4 * 1024 * 1024  # as Python's objects it takes ten times that: never two at a time
_one_by_one = ThreadPoolExecutor(1, thread_name_prefix="decode-huge-oip")
_TAKEN_DOWN = "shutting_down"
_JSON, _BYTES = (b"content-type", b"application/json"), (b"content-type", b"application/octet-stream")


async def check(ask: Ask) -> None:
    """Refuses what need not even be received. Raises Problem."""
    compression.coding(_header(ask, b"content-encoding"))
    await _lane(ask, None)


async def infer(ask: Ask) -> Told:
    """Answers one request. Raises Problem; what elsewhere is a 422 is a 400 under /v2, as its clients expect."""
    try:
        return await _infer(ask)
    except Unprocessable as problem:
        raise BadRequest(problem.detail, code=problem.code, hint=problem.hint, headers=problem.headers) from None


async def _infer(ask: Ask) -> Told:
    body = ask.body
    if b"content-encoding" in ask.headers and (coding := compression.coding(_header(ask, b"content-encoding"))):
        body = await _aside(ask, compression.unpacked, body, coding, ask.settings.max_predict_bytes)
    deadline = _deadline(ask)
    for again in (True, False):
        with await _lane(ask, deadline) as lane:
            try:
                return await _answer(ask, body, lane, deadline)
            except Problem as problem:
                # A new version was swapped in between.
                if problem.code != _TAKEN_DOWN or not again:
                    raise
    raise AssertionError("the loop above returns or raises")


async def _lane(ask: Ask, deadline: float | None) -> Lane:
    """One that sleeps is loaded, and waited for. Raises NotFound, Unavailable, Overloaded, DeadlineExceeded."""
    try:
        return ask.fleet.lane(ask.name, ask.version)
    except (NotFound, Unavailable):
        left = None if deadline is None else deadline - time.monotonic()
        try:
            async with asyncio.timeout(left):
                return await ask.fleet.find(ask.name, version=ask.version)
        except TimeoutError:
            raise DeadlineExceeded(f"the deadline passed before {ask.name!r} was loaded") from None


async def _answer(ask: Ask, body: bytes, lane: Lane, deadline: float | None) -> Told:
    ask.ref = lane.version.ref
    form = form_of(ask.name, lane)
    length = ask.headers.get(b"inference-header-content-length")
    try:
        if len(body) <= _MANY_JSON:
            header, inputs = oip_request.read(form, body, length)
        else:
            header, inputs = await _read_large(ask, lane, form, body, length)
    except Problem as problem:
        lane.refused(problem.code)
        raise
    if header.timeout_us:
        until = ask.came + header.timeout_us / 1e6
        deadline = until if deadline is None else min(deadline, until)
    outputs = await lane.infer(inputs, deadline=deadline, priority=header.priority, stages=ask.stages)
    ask.fleet.mirror(ask.name, lane, inputs, outputs)
    if sum([array.nbytes for array in outputs.values()]) > (_MANY_BYTES if header.lean else _MANY_JSON):
        content, head = await _aside(ask, oip_answer.write, form, header, outputs)
    else:
        content, head = oip_answer.write(form, header, outputs)
    headers = [_JSON] if head is None else [_BYTES, (b"inference-header-content-length", b"%d" % head)]
    headers.append((b"enginesmith-model", ask.ref.encode()))
    if len(content) >= compression.WORTH_BYTES and b"accept-encoding" in ask.headers:
        headers.append((b"vary", b"Accept-Encoding"))
        if asked := compression.accepted(_header(ask, b"accept-encoding")):
            content = await _aside(ask, compression.packed, content, asked)
            headers.append((b"content-encoding", asked.encode()))
    return Told(200, headers, content)


async def _read_large(
    ask: Ask, lane: Lane, form: Form, body: bytes, length: bytes | None
) -> tuple[oip_request.Header, Inputs]:
    """Many bytes of tensors take no time; much JSON and many strings do."""
    json = len(body) if length is None else oip_request.json_length(length, len(body))
    if json > _MANY_JSON:
        json_tensors.refuse_many(body[:json], lane.signature, lane.max_batch)
        if json > _HUGE_JSON:
            work = partial(oip_request.read, form, body, length)
            return await asyncio.get_running_loop().run_in_executor(_one_by_one, work)
    if json > _MANY_JSON or form.has_strings:
        return await _aside(ask, oip_request.read, form, body, length)
    return oip_request.read(form, body, length)


async def _aside(ask: Ask, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """In a thread, so that other requests go on meanwhile."""
    return await asyncio.get_running_loop().run_in_executor(ask.fleet.decoding, partial(work, *given, **named))


def _header(ask: Ask, name: bytes) -> str:
    return ask.headers.get(name, b"").decode("latin-1")


def _deadline(ask: Ask) -> float | None:
    """Of the header X-Timeout-Ms, on time.monotonic's clock. Raises BadRequest, DeadlineExceeded."""
    given = ask.headers.get(b"x-timeout-ms")
    if given is None:
        return None
    try:
        milliseconds = float(given)
    except ValueError:
        milliseconds = math.nan
    if not 0 <= milliseconds < math.inf:
        raise BadRequest(
            f"X-Timeout-Ms must be a number of milliseconds, not {given[:40].decode('latin-1')!r}",
            code="bad_timeout",
            hint="such as 250",
        )
    if milliseconds == 0:
        raise DeadlineExceeded("X-Timeout-Ms is 0: the deadline has passed already")
    return ask.came + milliseconds / 1e3
