"""Examples and schemas for the OpenAPI page, for bodies that the routes read themselves."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, TypeAdapter

PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "hint", "instance"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "code": {"type": "string", "description": "a stable word"},
        "hint": {"type": "string", "description": "what to do about it"},
        "retryable": {"type": "boolean"},
        "errors": {
            "type": "array",
            "items": {"type": "object", "properties": {"loc": {"type": "array"}, "msg": {"type": "string"}}},
        },
    },
}


ANY_PROBLEM: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "a problem (RFC 9457)",
        "content": {"application/problem+json": {"schema": PROBLEM_SCHEMA}},
    }
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route for problem bodies."""
    media = {"application/problem+json": {"schema": PROBLEM_SCHEMA}}
    return {status: {"description": _TOLD[status], "content": media} for status in (*statuses, 503)}


_TOLD = {
    400: "not what it claims to be",
    401: "no key, or an unknown one",
    404: "no such thing",
    409: "it cannot be done to this one, or it is in use",
    413: "too large",
    415: "a kind of file or body that is not taken",
    416: "no such range",
    422: "well-formed and wrong",
    503: "a part is not there",
    507: "no room for more: on the disk, in the store, or for this key",
}


_HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "Prefer": (
        {"type": "string", "examples": ["wait=30"]},
        "`wait=N`: seconds to hold the answer for its end, at most 60",
    ),
    "Idempotency-Key": (
        {"type": "string", "minLength": 1, "maxLength": 255},
        "the same key and body gives the same job; the same key with another body is a 409",
    ),
    "Range": ({"type": "string", "examples": ["bytes=0-1023"]}, "one range of bytes; the answer is 206"),
    "Last-Event-ID": ({"type": "string"}, "the `id` of the last event seen: goes on after it"),
}


def headers(*names: str) -> dict[str, Any]:
    """`openapi_extra` of a route that reads these headers itself."""
    told = ((name, *_HEADERS[name]) for name in names)
    return {"parameters": [{"name": n, "in": "header", "schema": s, "description": d} for n, s, d in told]}


def json_body(model: type[BaseModel] | TypeAdapter[Any], examples: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route that takes JSON."""
    schema = _schema(model)
    shown = {name: {"summary": name, "value": value} for name, value in examples.items()}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": shown}}}}


def upload_body(manifest: type[BaseModel], file: str, examples: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route that takes `file` and `manifest` as multipart."""
    schema = {
        "type": "object",
        "required": ["file", "manifest"],
        "properties": {
            "file": {"type": "string", "format": "binary", "description": file},
            "manifest": {**_schema(manifest), "description": "JSON"},
        },
    }
    shown = {n: {"summary": n, "value": {"file": "@" + f, "manifest": m}} for n, (f, m) in examples.items()}
    content = {"schema": schema, "examples": shown, "encoding": {"manifest": {"contentType": "application/json"}}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": content}}}


def _schema(model: type[BaseModel] | TypeAdapter[Any]) -> dict[str, Any]:
    """A JSON schema that refers to nothing outside itself."""
    adapter = model if isinstance(model, TypeAdapter) else TypeAdapter(model)
    schema = adapter.json_schema()
    definitions = schema.pop("$defs", {})
    found: dict[str, Any] = _inlined(schema, definitions)
    return found


def _inlined(value: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_inlined(v, definitions) for v in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[-1]
        return _inlined({**definitions[name], **{k: v for k, v in value.items() if k != "$ref"}}, definitions)
    # A discriminator's mapping points at definitions, which are gone.
    return {k: _inlined(v, definitions) for k, v in value.items() if k != "discriminator"}


def schema_of(model: type[BaseModel] | TypeAdapter[Any]) -> dict[str, Any]:
    return _schema(model)
