"""POST /v2/models/{name}[/versions/{version}]/infer, the protocol's hot path: bytes → tensors → engine → bytes."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from app.api.hot import Ask, Told
from app.api.taking import HUGE_JSON, MANY_JSON, answered, aside, deadline_of, lane_of, one_by_one
from app.errors import BadRequest, Problem, Unprocessable
from app.serving import compression, json_tensors, oip_answer, oip_request
from app.serving.oip import Form, form_of
from app.serving.served import ServedLane

Inputs = dict[str, npt.NDArray[Any]]
_MANY_BYTES = 2 * 1024 * 1024  # above this a thread does the work, so that other requests go on meanwhile
_JSON, _BYTES = (b"content-type", b"application/json"), (b"content-type", b"application/octet-stream")


async def check(ask: Ask) -> None:
    """Refuses what need not even be received. Raises Problem."""
    compression.coding(_header(ask, b"content-encoding"))
    await lane_of(ask)


async def infer(ask: Ask) -> Told:
    """Answers one request. Raises Problem; what elsewhere is a 422 is a 400 under /v2, as its clients expect."""
    try:
        return await _infer(ask)
    except Unprocessable as problem:
        raise BadRequest(problem.detail, code=problem.code, hint=problem.hint, headers=problem.headers) from None


async def _infer(ask: Ask) -> Told:
    body = ask.body
    if b"content-encoding" in ask.headers and (coding := compression.coding(_header(ask, b"content-encoding"))):
        body = await _unpacked(ask, body, coding)
    deadline = deadline_of(ask)
    return await answered(ask, deadline, lambda lane: _answer(ask, body, lane, deadline))


async def _unpacked(ask: Ask, body: bytes, coding: str) -> bytes:
    """What a body unpacks to, counted with all that are being answered while it grows, and until it is answered."""
    unpacking = compression.Unpacking(body, coding, ask.settings.max_predict_bytes)
    parts, more = [], True
    while more:
        part, more = await aside(ask, unpacking.step)
        ask.flight.hold(len(part))
        parts.append(part)
    return parts[0] if len(parts) == 1 else await aside(ask, b"".join, parts)


async def _answer(ask: Ask, body: bytes, lane: ServedLane, deadline: float | None) -> Told:
    ask.ref = lane.version.ref
    form = form_of(ask.name, lane)
    length = ask.headers.get(b"inference-header-content-length")
    try:
        if len(body) <= MANY_JSON:
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
    if sum([array.nbytes for array in outputs.values()]) > (_MANY_BYTES if header.lean else MANY_JSON):
        content, head = await aside(ask, oip_answer.write, form, header, outputs)
    else:
        content, head = oip_answer.write(form, header, outputs)
    headers = [_JSON] if head is None else [_BYTES, (b"inference-header-content-length", b"%d" % head)]
    headers.append((b"enginesmith-model", ask.ref.encode()))
    if len(content) >= compression.WORTH_BYTES and b"accept-encoding" in ask.headers:
        headers.append((b"vary", b"Accept-Encoding"))
        if asked := compression.accepted(_header(ask, b"accept-encoding")):
            content = await aside(ask, compression.packed, content, asked)
            headers.append((b"content-encoding", asked.encode()))
    return Told(200, headers, content)


async def _read_large(
    ask: Ask, lane: ServedLane, form: Form, body: bytes, length: bytes | None
) -> tuple[oip_request.Header, Inputs]:
    """Many bytes of tensors take no time; much JSON and many strings do."""
    json = len(body) if length is None else oip_request.json_length(length, len(body))
    if json > MANY_JSON:
        json_tensors.refuse_many(body[:json], lane.signature, lane.max_batch)
        if json > HUGE_JSON:
            return await one_by_one(oip_request.read, form, body, length)
    if json > MANY_JSON or form.has_strings:
        return await aside(ask, oip_request.read, form, body, length)
    return oip_request.read(form, body, length)


def _header(ask: Ask, name: bytes) -> str:
    return ask.headers.get(name, b"").decode("latin-1")
