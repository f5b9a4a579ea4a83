"""Finds attempts whose process, worker or both have died; starts their job again, once; then says that it failed.

Finds, too, what only a death in between can leave behind: a job that waits for nothing, a trial without its parent.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Any

from app.domain.records import Job, Status
from app.errors import WorkerLost
from app.queue import Queue
from app.settings import Settings
from app.storage.catalog import Catalog, Stale
from app.trials import WAITING_KINDS, is_over, stop_trials, tell_parent

log = logging.getLogger("enginesmith.reaper")
QUEUED_GRACE_S = 15.0  # from being taken off the queue to running: the start of a process


def reap(catalog: Catalog, queue: Queue, settings: Settings) -> list[str]:
    """One look at every open job; gives the ids of those it moved or put back. Any process may do it, at any time.

    A lease counts as expired when it has been missing for `reap_grace_s`: after a pause of Redis itself
    the living must be able to renew theirs before anybody is declared dead.
    """
    touched = []
    waiting: set[str] | None = None
    over: dict[str, bool] = {}
    for job in catalog.open_jobs():
        if job.parent and job.parent not in over:
            over[job.parent] = is_over(catalog, job.parent)
            if over[job.parent]:
                stop_trials(catalog, queue, job.parent)
        mark = f"{job.status}-{job.attempt}"
        if job.status == "queued" or job.due:
            waiting = queue.waiting() if waiting is None else waiting
            alive, grace = job.id in waiting, QUEUED_GRACE_S
        elif job.waiting and job.status == "running":
            alive, grace = not catalog.trials.has_news(job.id), settings.reap_grace_s
        else:
            alive, grace = catalog.leased(job.id), settings.reap_grace_s
        if alive:
            catalog.clear_missing(job.id, mark)
        elif (at := time.time()) - catalog.mark_missing(job.id, mark, at) >= grace:
            with contextlib.suppress(Stale):  # it moved, or another reaper was first
                _bring_back(catalog, queue, job, settings.max_attempts)
                touched.append(job.id)
            catalog.clear_missing(job.id, mark)
    return touched


def bring_back_now(catalog: Catalog, queue: Queue, settings: Settings, id: str, attempt: int) -> None:
    """For a worker that has just seen the process of this attempt die: nobody need wait for the lease to expire."""
    job = catalog.brief(id)
    if job.attempt == attempt and not job.waiting and (job.due or job.status in ("running", "cancelling")):
        with contextlib.suppress(Stale):
            _bring_back(catalog, queue, job, settings.max_attempts)
    if job.parent and (parent := catalog.brief(job.parent)).due:  # perhaps that process had just woken it
        _bring_back(catalog, queue, parent, settings.max_attempts)


def _bring_back(catalog: Catalog, queue: Queue, job: Job, allowance: int) -> None:
    if job.status == "queued":
        log.warning("job %s was taken off the queue and never started: queued again", job.id)
        queue.enqueue(job)
    elif job.status == "cancelling":
        _end(catalog, queue, job, allowance, to="cancelled")
    elif job.due:
        log.warning("the next step of job %s was taken off the queue and never started: queued again", job.id)
        queue.enqueue(job, front=True)
    elif job.waiting:
        log.warning("job %s waits, and nobody told it that a trial has ended", job.id)
        if woken := catalog.trials.wake(job.id, allowance):
            queue.enqueue(woken, front=True)
    elif job.attempt < job.allowed_attempts:
        log.warning("attempt %d of job %s was lost: queued again", job.attempt, job.id)
        again = catalog.moved(
            job.id,
            was={"running"},
            to="queued",
            attempt=job.attempt,
            next_attempt=job.attempt + 1,
            phase="queued again: the worker was lost",
        )
        queue.enqueue(again)
    else:
        log.error("attempt %d of job %s was lost too: failed", job.attempt, job.id)
        error = WorkerLost(
            f"the process that worked on this job died {job.attempt} times without a word",
            hint="it may need more memory than its worker has; the worker's log and the kernel's (dmesg) know. "
            f"POST /v1/jobs/{job.id}/retry starts it again from its last checkpoint",
        )
        _end(catalog, queue, job, allowance, to="failed", error=error.body(f"/v1/jobs/{job.id}"))


def _end(catalog: Catalog, queue: Queue, job: Job, allowance: int, *, to: Status, **changes: Any) -> None:
    was: Status = "cancelling" if to == "cancelled" else "running"
    ended = catalog.moved(job.id, was={was}, to=to, attempt=job.attempt, **changes)
    tell_parent(catalog, queue, ended, allowance)
    if job.kind in WAITING_KINDS:
        stop_trials(catalog, queue, job.id)
