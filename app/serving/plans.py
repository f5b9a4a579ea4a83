"""Which plan of a version this replica serves: the version's own; or, on another kind of GPU, one that a worker builds.

Plans of TensorRT do not travel. Where a version's was built for another GPU or version of TensorRT, a job is made, once
for every such kind, on the queue of the workers that have that kind; what it builds is kept in the store.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
import uuid

from app import runtimes
from app.domain.plans import key_of, queue_of
from app.domain.records import Job, Version, now, seconds_since
from app.errors import Conflict, NotFound, PlanBuilding, Problem, Unavailable
from app.queue import Queue
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog, Stale
from app.storage.plans import read_plan

log = logging.getLogger("enginesmith.serving")
_MADE_S = 30.0  # making a job is two commands to Redis
_AGAIN_S = 60.0
_ATTEMPTS = 5


class Plans:
    """One per process. Called in threads."""

    def __init__(self, artifacts: Artifacts, catalog: Catalog, queue: Queue) -> None:
        self._artifacts = artifacts
        self._catalog = catalog
        self._queue = queue
        self._found: dict[str, Version] = {}

    def of_here(self, version: Version) -> Version:
        """The version, with the files of the plan for this kind of GPU in the place of its own where these are for
        another. Raises PlanBuilding while a worker builds it; Conflict where that has failed."""
        why = runtimes.misfit(version.format, version.built_for or {})
        ties = runtimes.ties(version.format)
        if why is None or ties is None or not runtimes.get(version.format).available().ok:
            return version
        if version.ref in self._found:
            return self._found[version.ref]
        source = runtimes.source_of(version.format)
        key = key_of(version, source, ties)
        kept = read_plan(self._artifacts, key)
        if kept is None:
            raise self._building(self._job(version, key, ties), ties, why)
        found = version.but(folder=kept.folder, files=kept.files, built_for=kept.built_for)
        self._found[version.ref] = found
        return found

    def forget(self, version: Version) -> bool:
        """Its plan is looked for anew; whether one had been found that was not its own."""
        return self._found.pop(version.ref, None) is not None

    def _job(self, version: Version, key: str, ties: dict[str, str]) -> Job:
        """The job that builds it: there is one for all replicas."""
        for number in range(1_000_000):
            id = hashlib.sha256(f"{key}/{number}".encode()).hexdigest()[:32]
            try:
                job = self._catalog.brief(id)
            except NotFound:
                return self._made(id, version, key, ties)
            if job.status != "succeeded":
                return self._again(job)
            # It has built it, and what it built is gone.
        raise Unavailable("no job could be made that builds the plan")

    def _made(self, id: str, version: Version, key: str, ties: dict[str, str]) -> Job:
        spec = {"kind": "plan", "model": version.ref, "ties": ties}
        queue = queue_of(version.format, ties)
        job = Job(id=id, kind="plan", spec=spec, model=version.ref, queue=queue, created_at=now())
        mark, mine, at = f"plan:{id}", uuid.uuid4().hex, time.time()
        since, whose = self._catalog.remember(mark, str(at), mine)
        if whose != mine:
            # Another replica is making it at this moment; or has died doing so, and then a later look makes it.
            if at - float(since) > _MADE_S:
                self._catalog.forget(mark)
            return job
        self._catalog.add(job)
        log.info("%s: job %s is to build its plan for %s", version.ref, id, ", ".join(ties.values()))
        with contextlib.suppress(Unavailable):  # the reaper enqueues it when Redis is back
            self._queue.enqueue(job)
        return job

    def _again(self, job: Job) -> Job:
        """What failed by no fault of the plan's is tried again by itself, a few times."""
        is_passing = job.status == "failed" and (job.error or {}).get("retryable") and job.attempt < _ATTEMPTS
        if is_passing and seconds_since(str(job.finished_at)) > _AGAIN_S:
            with contextlib.suppress(Stale, Unavailable):  # another replica was first; or Redis is away
                job = self._catalog.again(job, 1)
                self._queue.enqueue(job)
        return job

    def _building(self, job: Job, ties: dict[str, str], why: str) -> Problem:
        told = f"its plan was built for another GPU or version ({why})"
        if job.status in ("failed", "cancelled"):
            said = (job.error or {}).get("detail", job.status)
            return Conflict(
                f"{told}, and job {job.id}, which was to build one for here, has {job.status}: {said}",
                code="plan_not_built",
                hint=f"POST /v1/jobs/{job.id}/retry tries again; the deployment then follows by itself",
                retryable=True,
            )
        if any(job.queue in worker.get("queues", ()) for worker in self._catalog.live_workers()):
            return PlanBuilding(f"{told}; job {job.id} builds one for here")
        return PlanBuilding(
            f"{told}; job {job.id} waits for a worker with {', '.join(ties.values())} to build one for here",
            hint="start a worker on a machine with such a GPU, with the queue gpu",
        )
