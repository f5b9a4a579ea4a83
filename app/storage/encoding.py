"""How records look inside Redis, and the cursors of lists."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from app.domain.records import Job
from app.errors import Unprocessable

_RAW = {"status", "attempt"}  # compared inside Lua, so stored bare
_SILENT = {"history", "spec"}  # too long to send with every change of state


def fields(values: dict[str, Any], but: Iterable[str]) -> dict[str, str]:
    return {k: str(v) if k in _RAW else json.dumps(v) for k, v in values.items() if k not in set(but)}


def job_of(held: dict[str, str]) -> Job:
    known = {k: v for k, v in held.items() if k in Job.model_fields}
    return Job.model_validate({k: v if k in _RAW else json.loads(v) for k, v in known.items()})


def event(job: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in job.items() if k not in _SILENT})


def about(job: Job, model: str | None) -> bool:
    if not model:
        return True
    made = job.result.model if job.result else None
    for ref in (job.model, made, job.spec.get("name")):
        if ref and (ref == model or ("@" not in model and str(ref).split("@")[0] == model)):
            return True
    return False


def millis(at: str) -> int:
    return int(datetime.fromisoformat(at).timestamp() * 1000)


def cursor_of(*parts: str) -> str:
    return base64.urlsafe_b64encode("\n".join(parts).encode()).decode().rstrip("=")


def parts_of(cursor: str) -> tuple[str, str]:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except ValueError:
        raise _bad_cursor() from None
    first, _, second = text.partition("\n")
    return first, second


def place_of(cursor: str) -> tuple[int, str]:
    at, id = parts_of(cursor)
    if not at.isdecimal():
        raise _bad_cursor()
    return int(at), id


def _bad_cursor() -> Unprocessable:
    return Unprocessable("this cursor did not come from us", code="bad_cursor", hint="start without one")
