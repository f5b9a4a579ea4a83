"""What the routes of jobs answer, for the OpenAPI page."""

from __future__ import annotations

from typing import Any, get_args

from app.api.examples import PROBLEM_SCHEMA, schema_of
from app.domain.records import Job, Status
from app.domain.specs import MENU

_TEXT: dict[str, Any] = {"type": "string"}
_MAYBE: dict[str, Any] = {"type": ["string", "null"]}
_WHEN: dict[str, Any] = {"type": "string", "format": "date-time"}
_MAYBE_WHEN: dict[str, Any] = {"type": ["string", "null"], "format": "date-time"}
_OBJECT: dict[str, Any] = {"type": "object"}
_RECORD = schema_of(Job)["properties"]
_VERDICTS = ["accepted", "rejected", "unproven", None]
_NUMBERS: dict[str, Any] = {"type": "array", "items": {"type": ["number", "string", "null"]}}
_AXIS: dict[str, Any] = {"type": "object", "properties": {"label": _TEXT, "log": {"type": "boolean"}}}
_FIGURE: dict[str, Any] = {
    "type": "object",
    "description": "a figure as data; the page draws it",
    "required": ["title", "kind", "series"],
    "properties": {
        "title": _TEXT,
        "kind": {"type": "string", "enum": ["lines", "bars", "points", "histogram", "intervals"]},
        "x": _AXIS,
        "y": _AXIS,
        "series": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": _TEXT, "x": _NUMBERS, "y": _NUMBERS, "low": _NUMBERS, "high": _NUMBERS,
                               "labels": {"type": "array", "items": _TEXT}, "line": {"type": "boolean"}},
            },
        },
        "note": _MAYBE,
    },
}  # fmt: skip
_DIFFERENCE: dict[str, Any] = {
    "type": "object",
    "description": "model - baseline over the same samples, with its interval",
    "properties": {
        "name": {"type": "string", "enum": ["accuracy", "r2"]},
        "difference": {"type": "number"},
        "low": {"type": "number"},
        "high": {"type": "number"},
        "n": {"type": "integer"},
        "confidence": {"type": "number"},
        "method": _TEXT,
    },
}
FOUND: dict[str, Any] = {
    "type": "object",
    "description": "what the kind of job has found; these fields mean the same wherever they are",
    "properties": {
        "notes": {"type": "array", "items": _TEXT, "description": "what to know about it, in plain words"},
        "figures": {"type": "array", "items": _FIGURE},
        "difference": {"anyOf": [_DIFFERENCE, {"type": "null"}]},
        "max_accuracy_drop": {"type": ["number", "null"]},
        "samples_needed": {"type": ["integer", "null"], "description": "samples that would decide what is unproven"},
        "verdict": {
            "type": ["object", "null", "string"],
            "description": "of evaluate with a baseline, quantize with a bound, and optimize: `verdict` (the word), "
            "`told` (in words), `difference`, `max_accuracy_drop`, `samples_needed`, `against` (what it was compared "
            "with), `split`. The word alone in reports of earlier releases",
        },
        "splits": {
            "type": "object",
            "description": "of the data set: `rows` of each split, `note`, and where splits were cut off `seed`, "
            "`rule` and `index`, the paths of their row numbers",
        },
        "dry_run": {"type": "boolean", "description": "nothing was changed: this is what would be"},
        "estimate_s": {"type": ["number", "null"], "description": "of a dry run: what the work would take, in seconds"},
    },
}
RESULT: dict[str, Any] = {
    "type": ["object", "null"],
    "properties": {
        "model": _MAYBE | {"description": "the version that was made, or looked at"},
        "verdict": {"type": ["string", "null"], "enum": _VERDICTS},
        "report": FOUND,
    },
}
ERROR: dict[str, Any] = {
    "anyOf": [PROBLEM_SCHEMA | {"required": ["type", "title", "status", "detail", "code"]}, {"type": "null"}]
}
_LINKS = ("self", "events", "report", "cancel", "retry")
JOB: dict[str, Any] = {
    "type": "object",
    "title": "Job",
    "required": [
        "id", "kind", "spec", "model", "dataset", "status", "phase", "progress", "metrics", "history", "result",
        "error", "cache_hit", "warnings", "parent", "attempt", "created_at", "started_at", "finished_at", "links",
    ],
    "properties": {
        "id": _TEXT,
        "kind": {"type": "string", "enum": list(MENU)},
        "spec": _OBJECT | {"description": "as asked"},
        "model": _MAYBE | {"description": "the exact version that it works on"},
        "dataset": _MAYBE | {"description": "the exact data set"},
        "status": {"type": "string", "enum": list(get_args(Status))},
        "phase": _TEXT | {"description": "what it does now"},
        "progress": _RECORD["progress"],
        "metrics": _OBJECT | {"description": "the newest row of its history"},
        "history": {"type": "array", "items": _OBJECT, "description": "one row of figures per epoch, or per trial"},
        "result": RESULT,
        "error": ERROR | {"description": "why it failed"},
        "cache_hit": {"type": "boolean", "description": "the same had been computed before, and was not again"},
        "warnings": {"type": "array", "items": _TEXT,
                     "description": "said at the submission: what may go otherwise than hoped"},
        "parent": _MAYBE | {"description": "the search or optimize job that a trial belongs to"},
        "attempt": {"type": "integer", "minimum": 1},
        "queue": {"type": "string", "description": "cpu, gpu; of kind plan that of one kind of GPU"},
        "created_at": _WHEN,
        "started_at": _MAYBE_WHEN,
        "finished_at": _MAYBE_WHEN,
        "links": {
            "type": "object",
            "required": list(_LINKS),
            "properties": dict.fromkeys((*_LINKS, "model", "parent", "trials"), _TEXT),
        },
    },
}  # fmt: skip
_AGAIN = (
    "id",
    "kind",
    "spec",
    "model",
    "dataset",
    "status",
    "metrics",
    "history",
    "error",
    "started_at",
    "finished_at",
)
REPORT: dict[str, Any] = {
    "type": "object",
    "title": "Report",
    "required": [*_AGAIN, "result", "verdict", "report"],
    "properties": {name: JOB["properties"][name] for name in _AGAIN}
    | {"result": RESULT, "verdict": RESULT["properties"]["verdict"], "report": FOUND},
}
EXAMPLE: dict[str, Any] = {
    "id": "5f0c8e0e7f0b4e6f9d0a1b2c3d4e5f60",
    "kind": "prune",
    "spec": {"kind": "prune", "model": "digits@2", "dataset": "digits@1", "method": "channel", "amount": 0.5},
    "model": "digits@2",
    "dataset": "digits@1",
    "status": "succeeded",
    "phase": "succeeded",
    "progress": {"done": 1, "total": 1, "unit": "", "eta_s": 0},
    "metrics": {},
    "history": [],
    "result": {"model": "digits@3", "verdict": None, "report": {"notes": []}},
    "error": None,
    "cache_hit": False,
    "warnings": [],
    "parent": None,
    "attempt": 1,
    "queue": "cpu",
    "created_at": "2026-01-05T09:00:00.000Z",
    "started_at": "2026-01-05T09:00:00.210Z",
    "finished_at": "2026-01-05T09:00:04.870Z",
    "links": {
        "self": "/v1/jobs/5f0c8e0e7f0b4e6f9d0a1b2c3d4e5f60",
        "events": "/v1/jobs/5f0c8e0e7f0b4e6f9d0a1b2c3d4e5f60/events",
        "report": "/v1/jobs/5f0c8e0e7f0b4e6f9d0a1b2c3d4e5f60/report",
        "cancel": "/v1/jobs/5f0c8e0e7f0b4e6f9d0a1b2c3d4e5f60/cancel",
        "retry": "/v1/jobs/5f0c8e0e7f0b4e6f9d0a1b2c3d4e5f60/retry",
        "model": "/v1/models/digits/versions/3",
    },
}


def shown(why: str) -> dict[str, Any]:
    """A response that is one job."""
    return {"description": why, "content": {"application/json": {"schema": JOB, "example": EXAMPLE}}}


def listed(why: str) -> dict[str, Any]:
    """A response that is a page of jobs."""
    schema = {
        "type": "object",
        "required": ["items", "next_cursor"],
        "properties": {"items": {"type": "array", "items": JOB}, "next_cursor": _MAYBE},
    }
    return {"description": why, "content": {"application/json": {"schema": schema}}}
