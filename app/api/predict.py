"""POST /predict/{deployment}: bytes → tensors → engine → bytes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from app.deps import fleet
from app.errors import BadRequest, BadTensor, DeadlineExceeded, Problem, Unprocessable, UnsupportedMedia
from app.metrics import OTHER
from app.serving import wire
from app.serving.fleet import Fleet
from app.serving.lane import Lane

router = APIRouter(tags=["predict"])
T = TypeVar("T")
_MANY_JSON, _MANY_BYTES = 64 * 1024, 4 * 1024 * 1024  # above these a body is decoded in a thread
_A_MOMENT_S = 0.05
_TAKEN_DOWN = "shutting_down"

_EXAMPLE: dict[str, Any] = {"inputs": [[0.0, 0.5, 1.0]], "top_k": 3}
_NAMED: dict[str, Any] = {"inputs": {"input": [[0.0, 0.5]], "sr": 16000}, "outputs": ["output"]}
_ANSWER: dict[str, Any] = {
    "model": "digits@5",
    "outputs": {"logits": [[-1.5, 4.25, 0.5]]},
    "predictions": [[{"label": "1", "score": 0.974}, {"label": "2", "score": 0.023}, {"label": "0", "score": 0.003}]],
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_OPENAPI: dict[str, Any] = {
    "parameters": [
        {
            "name": "X-Timeout-Ms",
            "in": "header",
            "schema": {"type": "number", "minimum": 0},
            "description": "a deadline: past it the answer is 504 and the engine was not bothered",
        },
        {
            "name": "outputs",
            "in": "query",
            "schema": {"type": "string"},
            "description": "names of outputs with commas, for bodies other than JSON",
        },
        {
            "name": "top_k",
            "in": "query",
            "schema": {"type": "integer", "minimum": 1},
            "description": "how many predictions a row, for bodies other than JSON",
        },
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "inputs": {"description": "nested lists; or one entry per input, by name"},
                        "outputs": {"type": "array", "items": {"type": "string"}},
                        "top_k": {"type": "integer", "minimum": 1},
                    },
                },
                "examples": {
                    "one input": {"summary": "a model of one input: a row each", "value": _EXAMPLE},
                    "several inputs": {"summary": "by name", "value": _NAMED},
                },
            },
            "application/x-npy": _BINARY | {"example": "numpy.save(body, array): one array, for one input"},
            "application/x-npz": _BINARY | {"example": "numpy.savez(body, input=…, sr=…): a member per input"},
            "image/jpeg": _BINARY | {"example": "curl -H 'Content-Type: image/jpeg' --data-binary @cat.jpg"},
            "image/png": _BINARY | {"example": "curl -H 'Content-Type: image/png' --data-binary @digit.png"},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                },
                "example": "curl -F file=@a.jpg -F file=@b.jpg",
            },
        },
    },
    "responses": {
        "200": {
            "description": "in the kind that Accept names",
            "content": {
                "application/json": {"example": _ANSWER},
                "application/x-npy": _BINARY,
                "application/x-npz": _BINARY,
            },
        },
        **{
            code: {"description": told, "content": {"application/problem+json": {"schema": {"type": "object"}}}}
            for code, told in {
                "404": "no such deployment",
                "406": "no answer in a kind that Accept names",
                "413": "the body is too large",
                "415": "a kind of body that this version does not take",
                "422": "a wrong name, dtype, shape or value; the detail says what was expected",
                "429": "the queue is full; Retry-After says for how long",
                "503": "not loaded",
                "504": "the deadline passed",
            }.items()
        },
    },
}


@router.post("/predict/{deployment}", openapi_extra=_OPENAPI)
async def predict(deployment: Annotated[str, Path(max_length=200)], request: Request) -> Response:
    """Answers one request with the version deployed. Rows of several requests share a run of the engine."""
    deadline = _deadline(request.headers)
    the_fleet = fleet(request)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("a compressed body is not taken here", hint="send it without Content-Encoding")
    kind_given = request.headers.get("content-type", "")
    # Asked before the body is read: what is refused anyway need not travel.
    wire.body_kind(kind_given, (await the_fleet.find(deployment)).version)
    body = await request.body()
    async with _unless_gone(request):
        for again in (True, False):
            # A new version may have been swapped in while the body came.
            with the_fleet.lane(deployment) as lane:
                try:
                    return await _answer(lane, kind_given, body, request, the_fleet, deadline)
                except Problem as problem:
                    if problem.code != _TAKEN_DOWN or not again:
                        raise
    raise AssertionError("the loop above returns or raises")


async def _answer(
    lane: Lane, content_type: str, body: bytes, request: Request, the_fleet: Fleet, deadline: float | None
) -> Response:
    version, headers, query = lane.version, request.headers, request.query_params
    try:
        kind = wire.body_kind(content_type, version)
        chosen = {"outputs": query.get("outputs"), "top_k": query.get("top_k")}
        if kind in ("image", "multipart"):
            images = [body] if kind == "image" else await _files(headers, body, lane.max_batch)
            asked = await _aside(the_fleet, lambda: wire.decode_images(images, version, **chosen))
        else:
            limit = request.app.state.settings.max_predict_bytes

            def decode() -> wire.Asked:
                return wire.decode(kind, body, version, limit=limit, **chosen)

            is_large = len(body) > (_MANY_JSON if kind == "json" else _MANY_BYTES) or kind == "npz"
            asked = await _aside(the_fleet, decode) if is_large else decode()
        answer_kind = wire.answer_kind(headers.get("accept"), kind, len(asked.outputs))
    except Problem:
        lane.batcher.meter.failed[OTHER] += 1
        raise
    outputs = await lane.infer(asked.inputs, deadline=deadline)

    def encode() -> tuple[bytes, str]:
        return wire.encode(answer_kind, outputs, asked, version)

    is_large = sum(array.nbytes for array in outputs.values()) > _MANY_BYTES // 4
    content, media = await _aside(the_fleet, encode) if is_large else encode()
    return Response(content, media_type=media, headers={"Enginesmith-Model": version.ref})


async def _aside(the_fleet: Fleet, work: Callable[[], T]) -> T:
    """In a thread, so that other requests go on meanwhile."""
    return await asyncio.get_running_loop().run_in_executor(the_fleet.decoding, work)


def _deadline(headers: Headers) -> float | None:
    """On time.monotonic's clock. Raises Unprocessable for a header that is no number of milliseconds."""
    given = headers.get("x-timeout-ms")
    if given is None:
        return None
    try:
        milliseconds = float(given)
    except ValueError:
        milliseconds = math.nan
    if not 0 <= milliseconds < math.inf:
        raise Unprocessable(
            f"X-Timeout-Ms must be a number of milliseconds, not {given[:40]!r}", code="bad_timeout", hint="such as 250"
        )
    if milliseconds == 0:
        raise DeadlineExceeded("X-Timeout-Ms is 0: the deadline has passed already")
    return time.monotonic() + milliseconds / 1e3


async def _files(headers: Headers, body: bytes, max_batch: int) -> list[bytes]:
    """The files of a multipart body, in order. Raises BadRequest, BadTensor."""

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    parser = MultiPartParser(headers, chunks(), max_files=max_batch, max_fields=16)  # type: ignore[arg-type]
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise BadTensor(
                f"more than {max_batch} images in one request, and max_batch is {max_batch}",
                hint=f"send at most {max_batch} at a time",
            ) from None
        raise BadRequest(f"the body is no valid multipart: {error.message}", code="bad_multipart") from None
    except (KeyError, ValueError) as error:
        raise BadRequest(f"the body is no valid multipart: {error}", code="bad_multipart") from None
    try:
        if fields := [name for name, value in form.multi_items() if not isinstance(value, UploadFile)]:
            raise BadTensor(
                f"the parts {fields[:8]} are no files", hint="send images as files: -F file=@a.jpg -F file=@b.jpg"
            )
        return [await value.read() for _, value in form.multi_items() if isinstance(value, UploadFile)]
    finally:
        await form.close()


@asynccontextmanager
async def _unless_gone(request: Request) -> AsyncIterator[None]:
    """Cancels what is inside once the client has gone. Looks only when it takes longer than a moment: a look costs."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    watch: asyncio.Task[None] | None = None
    gone = False

    async def look() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    def begin() -> None:
        nonlocal watch
        watch = loop.create_task(look())

    timer = loop.call_later(_A_MOMENT_S, begin)
    try:
        yield
    except asyncio.CancelledError:
        if gone:
            task.uncancel()
            raise ClientDisconnect from None
        raise
    finally:
        timer.cancel()
        if watch is not None:
            watch.cancel()
