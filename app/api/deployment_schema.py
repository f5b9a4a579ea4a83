"""What the routes of deployments answer, for the OpenAPI page."""

from __future__ import annotations

from typing import Any

from app.api.examples import PROBLEM_SCHEMA, schema_of
from app.domain.deployments import Deployment

_STATUSES = ["loading", "building", "ready", "failed", "asleep"]
_TEXT: dict[str, Any] = {"type": "string"}
_MAYBE: dict[str, Any] = {"type": ["string", "null"]}
_ERROR = {"anyOf": [PROBLEM_SCHEMA | {"required": ["type", "title", "status", "detail", "code"]}, {"type": "null"}]}
_BUILDING = _MAYBE | {"description": "while `status` is building: what is built, why, and by which job"}
_REPLICA: dict[str, Any] = {
    "type": "object",
    "required": ["replica", "generation", "since", "status", "model", "serving", "error"],
    "properties": {
        "replica": _TEXT,
        "generation": {"type": "integer", "description": "that it has seen"},
        "since": _TEXT | {"description": "the deployment's `created_at`"},
        "status": {"type": "string", "enum": _STATUSES},
        "model": _TEXT,
        "serving": _MAYBE | {"description": "the version that answers there now"},
        "versions": {"type": "array", "items": _TEXT, "description": "those that are loaded there, or sleep"},
        "error": _ERROR,
        "building": _BUILDING,
        "canary": {"type": "object", "description": "the figures that it is judged by"},
        "shadow": {"type": "object", "description": "what the comparison has found"},
    },
}
_RECORD = schema_of(Deployment)
_MORE: dict[str, Any] = {
    "status": {"type": "string", "enum": _STATUSES},
    "replicas": {"type": "array", "items": _REPLICA},
    "error": _ERROR | {"description": "why it failed"},
    "building": _BUILDING,
}
DEPLOYMENT: dict[str, Any] = {
    "type": "object",
    "title": "Deployment",
    "required": [*_RECORD["properties"], *_MORE],
    "properties": _RECORD["properties"] | _MORE,
}
_EXAMPLE: dict[str, Any] = {
    "name": "digits",
    "model": "digits@6",
    "previous": "digits@5",
    "generation": 4,
    "instances": 1,
    "max_batch": 64,
    "max_delay_ms": 0.0,
    "max_queue": 1024,
    "run_timeout_s": None,
    "threads": None,
    "canary": None,
    "shadow": None,
    "returned": None,
    "force": False,
    "created_at": "2026-01-05T09:00:00.000Z",
    "updated_at": "2026-01-06T10:30:00.000Z",
    "status": "ready",
    "replicas": [
        {
            "replica": "app-1",
            "generation": 4,
            "since": "2026-01-05T09:00:00.000Z",
            "status": "ready",
            "model": "digits@6",
            "serving": "digits@6",
            "versions": ["digits@6"],
            "error": None,
            "building": None,
        }
    ],
    "error": None,
    "building": None,
}


def shown(why: str) -> dict[str, Any]:
    """A response that is one deployment."""
    return {"description": why, "content": {"application/json": {"schema": DEPLOYMENT, "example": _EXAMPLE}}}


def shown_list(why: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["items", "next_cursor"],
        "properties": {"items": {"type": "array", "items": DEPLOYMENT}, "next_cursor": _MAYBE},
    }
    example = {"items": [_EXAMPLE], "next_cursor": None}
    return {"description": why, "content": {"application/json": {"schema": schema, "example": example}}}
