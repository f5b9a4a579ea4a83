"""What the routes of webhooks take and answer, for the OpenAPI page."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from app.api.examples import schema_of
from app.domain.records import Record
from app.domain.webhooks import ENDS, Delivery, Event, Webhook
from app.webhooks.addresses import LONGEST_URL


def _once(events: tuple[Event, ...]) -> tuple[Event, ...]:
    return tuple(dict.fromkeys(events))


class Wanted(Record):
    """Somebody to tell."""

    url: Annotated[
        str, Field(min_length=1, max_length=LONGEST_URL, description="https:// or http://, with a public address")
    ]
    events: Annotated[
        tuple[Event, ...], Field(min_length=1, max_length=16, description="which"), AfterValidator(_once)
    ] = ENDS
    secret: Annotated[
        str | None,
        Field(
            min_length=16,
            max_length=256,
            pattern=r"^[\x21-\x7e]+$",
            description="signs what is sent; one is made where none is given",
        ),
    ] = None


EXAMPLES: dict[str, Any] = {
    "how jobs end": {"url": "https://ci.example.com/hooks/enginesmith"},
    "failures alone, with a secret of one's own": {
        "url": "https://ci.example.com/hooks/enginesmith",
        "events": ["job.failed"],
        "secret": "correct-horse-battery-staple",
    },
}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_TEXT: dict[str, Any] = {"type": "string"}
_MAYBE: dict[str, Any] = {"type": ["string", "null"]}
_MORE: dict[str, Any] = {
    "waiting": _COUNT | {"description": "deliveries on their way"},
    "failures": _COUNT | {"description": "of attempts, in a row; 0 after a success"},
    "delivered": _COUNT,
    "failed": _COUNT | {"description": "deliveries that were given up"},
    "dropped": _COUNT | {"description": "the oldest, where more than 1,000 waited"},
    "links": {"type": "object", "properties": {"self": _TEXT, "ping": _TEXT}},
}
_SHOWN = {name: told for name, told in schema_of(Webhook)["properties"].items() if name != "secret"} | _MORE
WEBHOOK: dict[str, Any] = {"type": "object", "title": "Webhook", "required": list(_SHOWN), "properties": _SHOWN}
_RECORD = schema_of(Delivery)["properties"]
DELIVERY: dict[str, Any] = {
    "type": "object",
    "title": "Delivery",
    "required": [*_RECORD, "next_attempt_at"],
    "properties": _RECORD
    | {
        "outcome": _MAYBE | {"enum": ["delivered", "failed", None], "description": "null while it is still tried"},
        "error": _MAYBE
        | {
            "description": "what the last attempt met: `http_500` and the like, `timeout`, `connect_failed`, "
            "`tls_failed`, `broken_answer`, `unknown_host`, `refused_address`"
        },
        "next_attempt_at": _MAYBE | {"format": "date-time"},
    },
}
WITH_DELIVERIES: dict[str, Any] = WEBHOOK | {
    "required": [*_SHOWN, "deliveries"],
    "properties": _SHOWN
    | {
        "deliveries": {
            "type": "array",
            "items": DELIVERY,
            "description": "the newest 50 that wait, then the last 50 that are over, newest first",
        }
    },
}
WITH_SECRET: dict[str, Any] = WEBHOOK | {
    "required": [*_SHOWN, "secret"],
    "properties": _SHOWN | {"secret": _TEXT | {"description": "said here once, and never again"}},
}
LIST: dict[str, Any] = {
    "type": "object",
    "required": ["items", "next_cursor"],
    "properties": {"items": {"type": "array", "items": WEBHOOK}, "next_cursor": _MAYBE},
}
_EXAMPLE: dict[str, Any] = {
    "id": "5b1f0a9c3d7e2468",
    "url": "https://ci.example.com/hooks/enginesmith",
    "events": list(ENDS),
    "active": True,
    "why_off": None,
    "created_at": "2026-01-05T09:00:00.000Z",
    "waiting": 0,
    "failures": 0,
    "delivered": 0,
    "failed": 0,
    "dropped": 0,
    "links": {"self": "/v1/webhooks/5b1f0a9c3d7e2468", "ping": "/v1/webhooks/5b1f0a9c3d7e2468/ping"},
}
_SENT: dict[str, Any] = {
    "id": "0c5ee3a1f4b24d6b8a7d9e0f1a2b3c4d",
    "event": "job.succeeded",
    "job": "5f0c8e0e7f0b4e6f9d0a1b2c3d4e5f60",
    "created_at": "2026-01-05T09:00:04.870Z",
    "attempts": 1,
    "last_attempt_at": "2026-01-05T09:00:05.420Z",
    "status_code": 204,
    "error": None,
    "outcome": "delivered",
    "next_attempt_at": None,
}
_TRIED = {"attempts": 2, "status_code": 500, "error": "http_500", "outcome": None}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "webhook": (WITH_DELIVERIES, _EXAMPLE | {"delivered": 1, "deliveries": [_SENT]}),
    "failing": (
        WITH_DELIVERIES,
        _EXAMPLE
        | {"waiting": 1, "failures": 2}
        | {"deliveries": [_SENT | _TRIED | {"next_attempt_at": "2026-01-05T09:00:41.000Z"}]},
    ),
    "made": (WITH_SECRET, _EXAMPLE | {"secret": "whsec_…"}),
    "list": (LIST, {"items": [_EXAMPLE], "next_cursor": None}),
    "delivery": (
        DELIVERY,
        _SENT
        | {"event": "ping", "job": None, "attempts": 0, "last_attempt_at": None, "status_code": None}
        | {"outcome": None, "next_attempt_at": "2026-01-05T09:00:04.870Z"},
    ),
}


def shown(why: str, *which: str) -> dict[str, Any]:
    """A response of one of these shapes, with its examples."""
    schema, _ = SHAPES[which[0]]
    examples = {name: {"value": SHAPES[name][1]} for name in which}
    return {"description": why, "content": {"application/json": {"schema": schema, "examples": examples}}}
