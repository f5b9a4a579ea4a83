"""`enginesmith report`: what a job was asked, how it ended, and what it found, on one screen."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from .cli_hints import in_commands
from .cli_shown import shown
from .cli_state import State
from .records import Job


def summary(told: State, job: Job) -> None:
    """All of it on stdout: here the remarks are the result, too."""
    told.aside = told.out
    told.say(" · ".join(part for part in (f"job {job.id}", _asked(job), job.status, _took(job)) if part))
    if job.status == "succeeded":
        shown(told, job)
    elif error := job.get("error"):
        told.say(f"error: {error.get('detail') or 'no reason was given'}")
        if error.get("hint"):
            told.say(f"hint: {in_commands(str(error['hint']))}")
    elif job.status == "cancelled":
        told.say(f"again: enginesmith jobs retry {job.id}")
    else:
        told.say(f"it has not ended: enginesmith jobs watch {job.id}")
    told.say(f"all of it: enginesmith report {job.id} --json, or with plots: --html FILE")


def _asked(job: Job) -> str:
    data = f" on {job['dataset']}" if job.get("dataset") else ""
    return f"{job.kind} {job.get('model') or (job.get('spec') or {}).get('name') or ''}".strip() + data


def _took(job: Job) -> str | None:
    ends: list[Any] = [job.get("started_at"), job.get("finished_at")]
    if not all(isinstance(at, str) for at in ends):
        return None
    began, ended = (datetime.fromisoformat(at.replace("Z", "+00:00")) for at in ends)
    took = max(0.0, (ended - began).total_seconds())
    return f"took {took:.1f} s" if took < 60 else f"took {took / 60:.1f} min"
