"""What a job that waits and its trials owe each other: a trial that ends wakes its parent, a parent that ends takes its
trials along."""

from __future__ import annotations

import contextlib
import logging

from app.domain.records import Job
from app.errors import NotFound
from app.queue import Queue
from app.storage.catalog import Catalog, Stale

WAITING_KINDS = frozenset({"search", "optimize"})
log = logging.getLogger("enginesmith.trials")


def tell_parent(catalog: Catalog, queue: Queue, trial: Job, allowance: int) -> None:
    """To be called when a trial has ended, in whatever way: enqueues its parent's next step, if that one waits.

    allowance: how often a step may be begun. Whoever dies before this call leaves news that the reaper finds.
    """
    if trial.parent and (woken := catalog.trials.wake(trial.parent, allowance)):
        queue.enqueue(woken, front=True)


def is_over(catalog: Catalog, parent: str) -> bool:
    """Whether a job's trials have nobody left to work for."""
    try:
        job = catalog.brief(parent)
    except NotFound:
        return True
    return job.ended or job.status == "cancelling"


def stop_trials(catalog: Catalog, queue: Queue, parent: str) -> None:
    """Cancels what is open of a job's trials: at once where they are queued, within seconds where they run."""
    open = catalog.trials.open(parent)
    catalog.trials.stop(parent, open)
    for id in open:
        for _ in range(5):
            try:
                job = catalog.brief(id)
                if job.status == "queued":
                    queue.cancel(catalog.moved(id, was={"queued"}, to="cancelled", attempt=job.attempt))
                elif job.status == "running":
                    catalog.moved(id, was={"running"}, to="cancelling", attempt=job.attempt)
                break
            except NotFound:
                break
            except Stale:  # it moved between our look and our word
                continue


def try_again(catalog: Catalog, parent: Job) -> None:
    """Before a failed search or optimize job is retried: what failed of it is tried again, and what was cancelled: it
    may be what the job failed for."""
    if parent.kind in WAITING_KINDS and parent.status == "failed":
        again = [job.id for job in catalog.trials.of(parent.id).values() if job.status in ("failed", "cancelled")]
        catalog.trials.stop(parent.id, again)


def resume_trials(catalog: Catalog, queue: Queue, parent: str, allowance: int) -> None:
    """At the start of a step of a parent that was retried: trials that had ended because it did, and those that
    `try_again` names, are queued again."""
    for id in catalog.trials.stopped(parent):
        with contextlib.suppress(Stale, NotFound):
            job = catalog.brief(id)
            if job.status in ("running", "cancelling"):
                continue  # it is about to end, which makes for another step
            if job.status in ("cancelled", "failed"):
                again = catalog.moved(
                    id, was={job.status}, to="queued", attempt=job.attempt, next_attempt=job.attempt + 1,
                    allowed_attempts=job.attempt + allowance, error=None, started_at=None, finished_at=None,
                )  # fmt: skip
                queue.enqueue(again)
        catalog.trials.forget_stopped(parent, id)
