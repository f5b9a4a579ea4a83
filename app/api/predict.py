"""POST /predict/{deployment}: bytes → tensors → engine → bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Path
from fastapi.responses import Response
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from app.api.hot import Ask, Told
from app.api.taking import HUGE_JSON, MANY_JSON, answered, aside, deadline_of, lane_of, one_by_one
from app.errors import BadRequest, BadTensor, NotFound, Problem, UnsupportedMedia
from app.serving import arrays, json_tensors, wire
from app.serving.served import ServedLane
from app.serving.terms import terms_of

router = APIRouter(tags=["predict"])
_MANY_BYTES = 4 * 1024 * 1024  # above this a binary body is decoded in a thread

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
            "description": "names of outputs with commas; what a JSON body says goes first",
        },
        {
            "name": "top_k",
            "in": "query",
            "schema": {"type": "integer", "minimum": 1},
            "description": "how many predictions a row, in an answer of JSON; what a JSON body says goes first",
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
                "408": "the body came too slowly",
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
async def predict(deployment: Annotated[str, Path(max_length=200)]) -> Response:
    """Answers one request with the version deployed. Rows of several requests share a run of the engine."""
    # The page in /docs is made from this; requests are answered by `answer`, through app/api/hot.py.
    raise NotFound(f"no deployment {deployment!r}", code="deployment_not_found")


async def check(ask: Ask) -> None:
    """Refuses before the body has come what would be refused whatever it says. Raises NotFound, UnsupportedMedia …"""
    _encoding(ask)
    terms_of(await lane_of(ask)).kind(ask.headers.get(b"content-type", b""))


async def answer(ask: Ask) -> Told:
    """Decodes, has it inferred, and encodes. Raises Problem."""
    deadline = deadline_of(ask)
    _encoding(ask)
    return await answered(ask, deadline, lambda lane: _answer(ask, lane, deadline))


def _encoding(ask: Ask) -> None:
    if ask.headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise UnsupportedMedia("a compressed body is not taken here", hint="send it without Content-Encoding")


async def _answer(ask: Ask, lane: ServedLane, deadline: float | None) -> Told:
    headers, terms = ask.headers, terms_of(lane)
    ask.ref = lane.version.ref
    lane.refuse_if_full(terms.row_bytes)  # decoding may cost more than the engine does
    try:
        kind = terms.kind(headers.get(b"content-type", b""))
        asked = terms.npy(ask.body) if kind == "npy" and not ask.query else None
        if asked is None:
            asked = await _decoded(ask, lane, kind, deadline)
            if kind == "npy":
                terms.learn(ask.body)
        answer_kind = terms.answer_kind(headers.get(b"accept"), kind, len(asked.outputs))
    except Problem as problem:
        lane.refused(problem.code)
        raise
    outputs = await lane.infer(asked.inputs, deadline=deadline, stages=ask.stages)
    ask.fleet.mirror(ask.name, lane, asked.inputs, outputs)

    def encode() -> bytes:
        return wire.encode(answer_kind, outputs, asked, lane.version)[0]

    is_large = any(array.nbytes > _MANY_BYTES // 4 for array in outputs.values())
    return Told(200, terms.headers[answer_kind], await aside(ask, encode) if is_large else encode())


async def _decoded(ask: Ask, lane: ServedLane, kind: wire.Kind, deadline: float | None) -> wire.Asked:
    """The tensors of a body. What takes long is done in a thread."""
    query = dict(parse_qsl(ask.query.decode("latin-1"), keep_blank_values=True)) if ask.query else {}
    chosen = {"outputs": query.get("outputs"), "top_k": query.get("top_k")}
    body, version = ask.body, lane.version
    if kind in ("image", "multipart"):
        images = [body] if kind == "image" else await _files(ask.headers, body, lane.max_batch)
        found = await terms_of(lane).decoding.rows(images, ask.fleet.decoding, lane.plan.max_queue, deadline)
        return wire.images_asked(found, version, **chosen)

    def decode() -> wire.Asked:
        return wire.decode(kind, body, version, limit=ask.settings.max_predict_bytes, **chosen)

    if kind == "json" and len(body) > MANY_JSON:
        json_tensors.refuse_many(body, version.signature, lane.max_batch)
        if len(body) > HUGE_JSON:
            return await one_by_one(decode)
    if kind == "npz":
        # Counted with all bodies that are being answered, before there is any of it.
        ask.flight.hold(
            await aside(ask, arrays.unpacked_bytes, body, version.signature, ask.settings.max_predict_bytes)
        )
    is_large = len(body) > (MANY_JSON if kind == "json" else _MANY_BYTES) or kind == "npz"
    return await aside(ask, decode) if is_large else decode()


async def _files(headers: dict[bytes, bytes], body: bytes, max_batch: int) -> list[bytes]:
    """The files of a multipart body, in order. Raises BadRequest, BadTensor."""

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    # starlette asks for an AsyncGenerator by name, and only iterates.
    parser = MultiPartParser(Headers(raw=list(headers.items())), chunks(), max_files=max_batch, max_fields=16)  # type: ignore[arg-type]
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
            raise BadTensor(f"the parts {fields[:8]} are no files", hint=wire.AS_FILES, loc=(fields[0],))
        return [await value.read() for _, value in form.multi_items() if isinstance(value, UploadFile)]
    finally:
        await form.close()
