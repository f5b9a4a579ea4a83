"""Why requests do not get their answer: what the batcher says to them."""

from __future__ import annotations

import logging

from app.errors import TAKEN_DOWN, DeadlineExceeded, Internal, Overloaded, Unavailable
from app.serving.pace import Pace
from app.serving.waiting import Waiting

log = logging.getLogger("enginesmith.serving")


def overloaded(waiting: Waiting, max_queue: int, max_queue_bytes: int, pace: Pace) -> Overloaded:
    """Says in Retry-After when the rows that wait will have gone through, at the pace of late."""
    wait = pace.retry_s(waiting.rows)
    full = f"the queue is full: {waiting.rows} rows wait, and it holds {max_queue}"
    if waiting.nbytes > max_queue_bytes // 2:
        full += f"; {waiting.nbytes >> 20} MiB, and it holds {max_queue_bytes >> 20}"
    return Overloaded(
        full,
        hint=f"try again in {wait} s, or deploy with more instances or a larger max_queue",
        headers={"Retry-After": str(wait)},
    )


def too_late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "the deadline passed before there was an answer", hint="allow more time, or deploy with more instances"
    )


def taken_down() -> Unavailable:
    return Unavailable("this engine is being taken down", code=TAKEN_DOWN, hint="send the request again")


def failed(error: BaseException) -> Internal:
    log.error("an engine failed", exc_info=error)
    return Internal(f"the engine failed: {type(error).__name__}", code="engine_failed", hint="the log has more")
