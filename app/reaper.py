"""Finds attempts whose process, worker or both have died; starts their job again, once; then says that it failed."""

from __future__ import annotations

import contextlib
import logging
import time

from app.domain.records import Job
from app.errors import WorkerLost
from app.queue import Queue
from app.settings import Settings
from app.storage.catalog import Catalog, Stale

log = logging.getLogger("enginesmith.reaper")
QUEUED_GRACE_S = 15.0  # from being taken off the queue to running: the start of a process


def reap(catalog: Catalog, queue: Queue, settings: Settings) -> list[str]:
    """One look at every open job; gives the ids of those it moved or put back. Any process may do it, at any time.

    A lease counts as expired when it has been missing for `reap_grace_s`: after a pause of Redis itself
    the living must be able to renew theirs before anybody is declared dead.
    """
    touched = []
    waiting: set[str] | None = None
    for job in catalog.open_jobs():
        mark = f"{job.status}-{job.attempt}"
        if job.status == "queued":
            waiting = queue.waiting() if waiting is None else waiting
            alive, grace = job.id in waiting, QUEUED_GRACE_S
        else:
            alive, grace = catalog.leased(job.id), settings.reap_grace_s
        if alive:
            catalog.clear_missing(job.id, mark)
        elif (at := time.time()) - catalog.mark_missing(job.id, mark, at) >= grace:
            with contextlib.suppress(Stale):  # it moved, or another reaper was first
                _bring_back(catalog, queue, job)
                touched.append(job.id)
            catalog.clear_missing(job.id, mark)
    return touched


def bring_back_now(catalog: Catalog, queue: Queue, id: str, attempt: int) -> None:
    """For a worker that has just seen the process of this attempt die: nobody need wait for the lease to expire."""
    job = catalog.job(id)
    if job.attempt == attempt and job.status in ("running", "cancelling"):
        with contextlib.suppress(Stale):
            _bring_back(catalog, queue, job)


def _bring_back(catalog: Catalog, queue: Queue, job: Job) -> None:
    if job.status == "queued":
        log.warning("job %s was taken off the queue and never started: queued again", job.id)
        queue.enqueue(job)
    elif job.status == "cancelling":
        catalog.moved(job.id, was={"cancelling"}, to="cancelled", attempt=job.attempt)
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
        catalog.moved(
            job.id,
            was={"running"},
            to="failed",
            attempt=job.attempt,
            error=error.body(f"/v1/jobs/{job.id}"),
        )
