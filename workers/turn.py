"""What one process does in a row: a trial, its parent's next step if that is due, the next trial of that parent.

A process whose libraries are imported is worth keeping for trials that take less time than its start did.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from typing import Any

from app import tracing
from app.domain.records import Job, now
from app.domain.specs import TrialSpec
from app.errors import Internal, NotFound, Problem
from app.memory import resident_bytes
from app.queue import Queue
from app.settings import MiB, Settings
from app.storage.catalog import Catalog, Stale
from app.trials import WAITING_KINDS, is_over, stop_trials
from workers.lease import Ending
from workers.trials import preload

log = logging.getLogger("enginesmith.run")
RESIDENT_MAX = 2048 * MiB  # a process that has grown beyond takes no further trial
LINGER_S = 5.0  # for the step of another process that is about to ask for more trials
_NAME = re.compile(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*")


class Turn:
    """Gives a process its jobs. delivery: RQ's id of the one that it was started for, by which its worker looks up what
    it was doing when it died."""

    def __init__(
        self, settings: Settings, catalog: Catalog, queue: Queue, process: Ending, delivery: str | None
    ) -> None:
        self._settings, self._catalog, self._queue = settings, catalog, queue
        self._process, self._delivery = process, delivery
        self._began = time.monotonic()
        self._done = 0
        self._holds = False
        self._mine: tuple[str, int] | None = None  # a trial on no queue, because this process is about to do it

    def begin(self, id: str, attempt: int) -> Job | None:
        """The job, running under a lease: from its start, or with its next step. None when it is not ours to begin."""
        try:
            job = self._catalog.brief(id)
            if job.due:
                return self._catalog.trials.claim(id, attempt, self._settings.lease_s)
            if job.parent and is_over(self._catalog, job.parent):
                stop_trials(self._catalog, self._queue, job.parent)
                return None
            job = self._catalog.moved(
                id, was={"queued"}, to="running", attempt=attempt, lease_s=self._settings.lease_s, started_at=now(),
                phase="starting",
            )  # fmt: skip
        except (Stale, NotFound) as gone:
            log.info("job %s, attempt %d: not started: %s", id, attempt, gone.detail)
            return None
        if job.kind == "search":
            self._call_others(job)
        return job

    def help(self, id: str) -> Job | None:
        """A trial of a search that another process has begun: this one was called while that one still looked."""
        with contextlib.suppress(NotFound):
            job = self._catalog.brief(id)
            if job.kind in WAITING_KINDS and job.status == "running" and self._goes_on():
                if not (job.waiting or job.due):
                    preload(job.spec)
                return self._take(id, job.queue)
        return None

    def start(self, parent: Job, trials: dict[str, dict[str, Any]]) -> None:
        """Adds and enqueues the trials that a step asks for, but keeps one from the queue that this process does next:
        a worker that is idle would else start another process for it. Raises Fenced, Internal."""
        if self._mine is None and self._goes_on():
            self._mine = self._queue.take(parent.id, parent.queue)  # those that wait come first
        keep = self._mine is None and self._goes_on()
        mine = self._mine[0] if self._mine else None
        kept = start_trials(self._catalog, self._queue, self._settings, parent, trials, keep=keep, mine=mine)
        if kept is not None:
            self._mine = kept.id, kept.attempt

    def after(self, job: Job) -> Job | None:
        """What to do next, begun; None: nothing. A parent that is to be woken is woken, here or through the queue."""
        self._done += 1
        family = job.parent or (job.id if job.kind in WAITING_KINDS and not job.ended else None)
        if family is None:
            return None
        due = self._catalog.trials.wake(family, self._settings.max_attempts) if job.parent else job if job.due else None
        goes_on = self._goes_on()
        if due is not None:
            if not goes_on:  # whose process has had its minute: others that wait come first
                self._queue.enqueue(due, front=self._done < 2)
            elif (step := self._next(due.id, due.attempt)) is not None:
                return step
        if goes_on and self._mine is not None:
            mine, self._mine = self._mine, None
            if (trial := self._next(*mine)) is not None:
                return trial
        return self._take(family, job.queue) if goes_on else None

    def close(self) -> None:
        if self._mine is not None and (mine := self._catalog.brief(self._mine[0])).status == "queued":
            self._queue.enqueue(mine)
        if self._holds and self._delivery:
            self._catalog.trials.let_go(self._delivery)

    def _goes_on(self) -> bool:
        young = time.monotonic() - self._began < self._settings.reuse_s
        return young and not self._process.asked and resident_bytes() < RESIDENT_MAX

    def _call_others(self, job: Job) -> None:
        """Processes take a while to start, and a first step to ask for trials: others may start meanwhile. One that
        finds nothing to do ends; what nobody came for is taken off the queue with the job's end."""
        serving = [w for w in self._catalog.live_workers() if job.queue in w.get("queues", ())]
        others = min(sum(int(w.get("count", 1)) for w in serving), int(job.spec.get("parallel") or 1)) - 1
        with contextlib.suppress(Problem):
            for _ in range(others):
                self._queue.call(job)

    def _take(self, family: str, queue: str) -> Job | None:
        """The next queued trial; waits a little while a step of another process is asking for some."""
        until = time.monotonic() + LINGER_S
        while self._goes_on():
            if (taken := self._queue.take(family, queue)) is not None:
                if (trial := self._next(*taken)) is not None:
                    return trial
                continue
            try:
                parent = self._catalog.brief(family)
            except NotFound:
                return None
            if parent.due:  # perhaps its delivery waits for the very worker that has this process
                if (step := self._next(parent.id, parent.attempt)) is not None:
                    self._queue.cancel(parent)
                    return step
            elif parent.status != "running" or parent.waiting or time.monotonic() > until:
                return None
            time.sleep(0.02)
        return None

    def _next(self, id: str, attempt: int) -> Job | None:
        if self._delivery:
            self._holds = True
            self._catalog.trials.hold(self._delivery, id, attempt)
        return self.begin(id, attempt)


def start_trials(
    catalog: Catalog,
    queue: Queue,
    settings: Settings,
    parent: Job,
    trials: dict[str, dict[str, Any]],
    *,
    keep: bool = False,
    mine: str | None = None,
) -> Job | None:
    """Adds and enqueues the trials that a step asks for; those that there are already stay as they are.

    keep: the first one that is new is given back instead of enqueued. mine: one that the caller took off the queue.
    Raises Fenced when this attempt at the parent may not ask any more, Internal for a name that cannot be one.
    """
    kept: Job | None = None
    waiting: set[str] | None = None
    for name, asked in trials.items():
        if len(name) > 64 or not _NAME.fullmatch(name):
            raise Internal(f"{name!r} cannot name a trial")
        spec = TrialSpec.model_validate({"kind": "trial"} | asked)
        trial = Job(
            id=f"{parent.id}-{name}", kind="trial", spec=spec.model_dump(mode="json"), queue=parent.queue,
            model=spec.model or parent.model, dataset=spec.dataset or parent.dataset, parent=parent.id,
            allowed_attempts=settings.max_attempts, traceparent=tracing.traceparent() or parent.traceparent,
            created_at=now(),
        )  # fmt: skip
        if catalog.trials.add(trial, parent.attempt):
            if keep and kept is None:
                kept = trial
            else:
                queue.enqueue(trial)
            continue
        waiting = queue.waiting() if waiting is None else waiting
        there = catalog.brief(trial.id)
        if there.status == "queued" and there.id not in waiting and there.id != mine:  # whoever added it died before
            queue.enqueue(there)
    return kept
