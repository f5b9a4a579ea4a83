"""Hands jobs to workers. The only file of app that knows RQ, which carries a job and starts its process; no more."""

from __future__ import annotations

import contextlib
import logging
import uuid

import redis
import rq
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError, TimeoutError
from redis.retry import Retry
from rq.exceptions import NoSuchJobError
from rq.job import Job as Delivery

from app.domain.records import Job
from app.storage.dial import dial
from app.storage.redis import LOST, gone

WORK = "workers.run.run"  # a dotted string: app never imports workers
NAMES = ("gpu", "cpu")
NO_ATTEMPT = 0  # attempts are counted from 1: one who is called has none of his own
_TTL_S = 60  # RQ's own memory of a delivery, which nobody reads


class Queue:
    """RQ's queues `gpu` and `cpu`, and one for each kind of GPU that plans are built for. Every delivery has an id of
    its own; the catalog decides which one counts."""

    def __init__(self, url: str) -> None:
        self.redis = dial(
            url,
            redis.Redis,
            retry=Retry(ExponentialBackoff(cap=1, base=0.05), 5),
            retry_on_error=[ConnectionError, TimeoutError],
            socket_timeout=10,
            socket_connect_timeout=5,
        )
        logging.getLogger("rq").setLevel(logging.WARNING)

    def enqueue(self, job: Job, *, front: bool = False) -> None:
        """front: before all others. Raises Unavailable; then the reaper enqueues the job when Redis is back."""
        self._deliver(job, job.attempt, front)

    def call(self, job: Job) -> None:
        """Starts a further process for a job that is running, to take its trials as they come. Raises Unavailable."""
        self._deliver(job, NO_ATTEMPT, False)

    def _deliver(self, job: Job, attempt: int, front: bool) -> None:
        with _translated():
            rq.Queue(job.queue, connection=self.redis).enqueue_call(
                WORK,
                args=(job.id, attempt),
                job_id=f"{job.id}--{attempt}-{uuid.uuid4().hex[:8]}",
                timeout=-1,
                result_ttl=_TTL_S,
                failure_ttl=_TTL_S,
                description=f"{job.kind} {job.id} attempt {attempt}",
                at_front=front,
            )

    def cancel(self, job: Job) -> None:
        """Takes a job off its queue; harmless when it is not there."""
        with _translated():
            for name in {*NAMES, job.queue}:
                held = rq.Queue(name, connection=self.redis)
                for id in held.get_job_ids():
                    if id.split("--")[0] == job.id:
                        with contextlib.suppress(NoSuchJobError):
                            held.remove(id)

    def take(self, parent: str, name: str) -> tuple[str, int] | None:
        """Takes the first trial of a job off a queue, as a worker would: (id, attempt), for the caller alone."""
        with _translated():
            held = rq.Queue(name, connection=self.redis)
            for id in held.get_job_ids():
                is_trial = id.startswith(f"{parent}-") and not id.startswith(f"{parent}--")
                if is_trial and self.redis.lrem(held.key, 1, id):
                    with contextlib.suppress(NoSuchJobError):
                        Delivery.fetch(id, connection=self.redis).delete(remove_from_queue=False)
                    job, _, delivery = id.partition("--")
                    return job, int(delivery.partition("-")[0])
        return None

    def lengths(self) -> dict[str, int]:
        """How much lies on each queue, on those of plans too. Raises Unavailable."""
        with _translated():
            known = dict.fromkeys(NAMES, 0)
            return known | {queue.name: len(queue) for queue in rq.Queue.all(connection=self.redis)}

    def waiting(self) -> set[str]:
        """The ids of the jobs that lie on a queue."""
        with _translated():
            queues = rq.Queue.all(connection=self.redis)  # those of plans, too
            return {id.split("--")[0] for queue in queues for id in queue.get_job_ids()}


def delivery() -> str | None:
    """RQ's id of what this process was started for; None where RQ did not start it."""
    job = rq.get_current_job()
    return job.id if job else None


class _translated(contextlib.AbstractContextManager[None]):  # noqa: N801  reads as a verb where it is used
    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, LOST):
            raise gone(error) from error
