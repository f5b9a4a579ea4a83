"""Webhooks: who is told of which events of jobs, what is told, how it is signed, and when it is tried again."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from typing import Literal

from pydantic import Field

from app.domain.records import Job, Record, Status, now

Event = Literal["job.started", "job.succeeded", "job.failed", "job.cancelled"]
ENDS: tuple[Event, ...] = ("job.succeeded", "job.failed", "job.cancelled")
PING = "ping"
# Waits between the attempts at one delivery; the last goes on until it is given up.
WAITS_S = (5.0, 30.0, 120.0, 600.0, 3600.0, 7200.0, 14400.0, 21600.0)
GIVE_UP_S = 24 * 3600.0
LONGEST_ASKED_S = 3600.0  # of a receiver's own Retry-After
# A receiver that failed gets nothing else either for a while, so that what waits for it is not all tried in vain.
LONGEST_PAUSE_S = 60.0
JITTER = 0.2
_EVENT_OF: dict[Status, Event] = {
    "running": "job.started",
    "succeeded": "job.succeeded",
    "failed": "job.failed",
    "cancelled": "job.cancelled",
}
_TOLD = {
    "id", "kind", "model", "dataset", "status", "attempt", "error", "key", "created_at", "started_at", "finished_at",
}  # fmt: skip


class Webhook(Record):
    """Somebody to tell. The secret is kept as it is: it signs, so that a hash of it would not do."""

    id: str
    url: str
    events: tuple[Event, ...] = Field(min_length=1)
    secret: str
    active: bool = True
    why_off: str | None = None
    created_at: str


class Delivery(Record):
    """One event on its way to one webhook, without what is told. outcome: None while it is still tried. error: a word
    for what the last attempt met."""

    id: str
    event: str
    job: str | None = None
    created_at: str
    attempts: int = 0
    last_attempt_at: str | None = None
    status_code: int | None = None
    error: str | None = None
    outcome: Literal["delivered", "failed"] | None = None


def make(url: str, events: tuple[Event, ...], secret: str | None) -> Webhook:
    secret = secret or f"whsec_{secrets.token_urlsafe(32)}"
    return Webhook(id=secrets.token_hex(8), url=url, events=events, secret=secret, created_at=now())


def announcement(job: Job) -> tuple[Delivery, str] | None:
    """What a job that has just changed its state is news for, with the body that tells it. None where nobody is told:
    the trials of a search are its own affair."""
    event = _EVENT_OF.get(job.status)
    if event is None or job.parent is not None:
        return None
    delivery = Delivery(id=secrets.token_hex(16), event=event, job=job.id, created_at=now())
    at = f"/v1/jobs/{job.id}"
    result = job.result.model_dump(mode="json", include={"model", "verdict"}) if job.result else None
    told = job.model_dump(mode="json", include=_TOLD) | {"result": result}
    return delivery, body_of(
        delivery, told | {"links": {"self": at, "events": f"{at}/events", "report": f"{at}/report"}}
    )


def ping() -> tuple[Delivery, str]:
    delivery = Delivery(id=secrets.token_hex(16), event=PING, created_at=now())
    return delivery, body_of(delivery, None)


def body_of(delivery: Delivery, job: dict[str, object] | None) -> str:
    told = {"id": delivery.id, "event": delivery.event, "created_at": delivery.created_at, "job": job}
    return json.dumps(told, separators=(",", ":"))


def signature(secret: str, body: bytes, at: int) -> str:
    """The header Enginesmith-Signature: HMAC-SHA256 over the time and the body. at: Unix seconds."""
    mac = hmac.new(secret.encode(), b"%d." % at + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={mac}"


def wait_s(attempts: int, asked_s: float | None, draw: float, waits: tuple[float, ...] = WAITS_S) -> float:
    """Until the next attempt, after so many. asked_s: the receiver's Retry-After. draw: from 0 to 1."""
    own = waits[min(attempts, len(waits)) - 1] * (1 + JITTER * (2 * draw - 1))
    return max(own, min(asked_s or 0.0, LONGEST_ASKED_S))


def pause_s(failures: int, asked_s: float | None, waits: tuple[float, ...] = WAITS_S) -> float:
    """For how long a receiver that failed so many times in a row gets nothing at all."""
    own = min(waits[min(failures, len(waits)) - 1], LONGEST_PAUSE_S)
    return max(own, min(asked_s or 0.0, LONGEST_ASKED_S))
