"""JSON in and out: strict about what comes, fast about what goes."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from app.api.problems import invalid
from app.errors import BadRequest, Unprocessable, UnsupportedMedia

_AT_ONCE = 64 * 1024  # bytes
DEEPEST = 100  # levels of nesting; a network as a graph needs about ten
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
_JSON = re.compile(r"^application/(?:[\w.+-]+\+)?json\s*(?:;.*)?$", re.IGNORECASE)


class Json(Response):
    """A JSON answer. NaN and infinity become null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, default=str, option=orjson.OPT_NON_STR_KEYS)


def parse_json(data: bytes, what: str = "the body") -> Any:
    """Refuses NaN, lone surrogates, doubled fields and deep nesting. Raises BadRequest."""
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if "depth" in str(error) or "ecursion" in str(error):
            raise _too_deep(what) from None
        raise BadRequest(f"{what} is no valid JSON: {error}", code="bad_json") from None
    if _depth(found) > DEEPEST:
        raise _too_deep(what)
    if doubled := _doubled(data):
        raise BadRequest(f"{what} has the field {doubled!r} twice", code="bad_json", hint="say it once")
    return found


async def read_json(request: Request) -> Any:
    """The JSON body of a request. Raises BadRequest, UnsupportedMedia, TooLarge."""
    kind = request.headers.get("content-type", "")
    if not _JSON.match(kind):
        said = f"not {kind!r}" if kind else "and there is no Content-Type"
        raise UnsupportedMedia(f"this takes application/json, {said}", hint="send Content-Type: application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("a compressed body is not taken here", hint="send it without Content-Encoding")
    return await parsed(await request.body())


async def parsed(data: bytes, what: str = "the body") -> Any:
    """Like parse_json; a large one in a thread, so that others are answered meanwhile."""
    return parse_json(data, what) if len(data) < _AT_ONCE else await asyncio.to_thread(parse_json, data, what)


def checked(model: type[M], value: Any, what: str) -> M:
    """A value as a record. Raises Unprocessable with every field that is wrong."""
    if not isinstance(value, dict):
        raise Unprocessable(f"{what} must be a JSON object, and is {_kind(value)}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False, include_context=False), what) from None


def checked_by(adapter: TypeAdapter[T], value: Any, what: str) -> T:
    """Like `checked`, for a union of records that their `kind` tells apart."""
    if not isinstance(value, dict):
        raise Unprocessable(f"{what} must be a JSON object, and is {_kind(value)}")
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        errors: list[Any] = error.errors(include_url=False, include_input=False, include_context=False)
        for one in errors:  # pydantic puts the branch of the union first, which is no place in the body
            if one["loc"][:1] == (value.get("kind"),):
                one["loc"] = one["loc"][1:]
        raise invalid(errors, what) from None


def finite(value: Any) -> Any:
    """The value with null for NaN and infinity: for JSON that is made without orjson."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def _too_deep(what: str) -> BadRequest:
    return BadRequest(f"{what} is nested more than {DEEPEST} levels deep", code="too_deep", hint="make it flatter")


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _depth(value: Any) -> int:
    """Levels of nesting, counted without recursion."""
    deepest = 0
    stack = [(value, 1)]
    while stack:
        held, level = stack.pop()
        if isinstance(held, dict | list):
            deepest = max(deepest, level)
            if deepest > DEEPEST:
                break
            children = held.values() if isinstance(held, dict) else held
            stack.extend((child, level + 1) for child in children if isinstance(child, dict | list))
    return deepest


def _doubled(data: bytes) -> str | None:
    """The first field that an object has twice; orjson keeps the last in silence."""
    found: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in () if found else items:
            if name in seen:
                found.append(name)
                break
            seen.add(name)

    json.loads(data, object_pairs_hook=pairs, parse_int=len, parse_float=len)
    return found[0] if found else None
