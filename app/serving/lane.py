"""One loaded version under a deployment: its engine, the queue in front of it, and what /predict has to know of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from app import runtimes
from app.domain.records import Signature, Version
from app.errors import Conflict
from app.metrics import OTHER, Meter
from app.runtimes import Arrays, Engine, LoadOptions
from app.serving.batcher import RUN_TIMEOUT_S, Batcher, Outputs, Stages
from app.serving.guard import Watch
from app.serving.warming import warm

log = logging.getLogger("enginesmith.serving")
_DEFAULT_MAX_BATCH = 64


class Plan(NamedTuple):
    """What distinguishes one lane from another: the same plan needs no reload."""

    ref: str
    instances: int
    max_batch: int | None
    max_delay_ms: float
    max_queue: int
    threads: int | None = None
    run_timeout_s: float | None = None


class Lane:
    """`with lane:` keeps it from being taken down while a request is between finding it and being queued.

    reopen: loads a fresh engine when a run of this one takes longer than the plan's run_timeout_s; called in a thread.
    """

    def __init__(
        self,
        plan: Plan,
        version: Version,
        engine: Engine,
        meter: Meter,
        reopen: Callable[[], Engine] | None = None,
    ) -> None:
        self.plan = plan
        self.version = version
        self.max_batch = default_max_batch(version) if plan.max_batch is None else plan.max_batch
        self.batcher = Batcher(
            engine,
            meter,
            max_batch=self.max_batch,
            max_delay_ms=plan.max_delay_ms,
            max_queue=plan.max_queue,
            instances=plan.instances,
            run_timeout_s=plan.run_timeout_s or RUN_TIMEOUT_S,
            reopen=reopen,
        )
        self.watch: Watch | None = None  # where its answers are judged: see guard.py
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def signature(self) -> Signature:
        return self.version.signature

    def __enter__(self) -> Self:
        self._users += 1
        self._unused.clear()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._users -= 1
        if not self._users:
            self._unused.set()

    def infer(
        self, inputs: Arrays, *, deadline: float | None = None, priority: int = 0, stages: Stages | None = None
    ) -> Coroutine[Any, Any, Outputs]:
        """See Batcher.submit."""
        submitted = self.batcher.submit(inputs, deadline=deadline, priority=priority, stages=stages)
        return submitted if self.watch is None else _judged(submitted, self.watch)

    def refuse_if_full(self, nbytes: int) -> None:
        """See Batcher.refuse_if_full."""
        self.batcher.refuse_if_full(nbytes)

    def refused(self, why: str) -> None:
        """Counts a request that did not get as far as the queue."""
        self.batcher.meter.refuse(OTHER, why)

    def blame(self) -> None:
        """A canary has refused a request that the main version answered."""
        if self.watch is not None:
            self.watch.blame()

    async def close(self, grace_s: float) -> None:
        """Lets whoever uses it finish, for at most `grace_s`; then ends the engine and answers whoever still waits."""
        until = time.monotonic() + grace_s
        try:
            await asyncio.wait_for(self._unused.wait(), grace_s)
        except TimeoutError:
            log.warning("%s was taken down with %d requests on it", self.plan.ref, self._users)
        await self.batcher.close(max(0.0, until - time.monotonic()))


async def _judged(submitted: Coroutine[Any, Any, Outputs], watch: Watch) -> Outputs:
    came = time.monotonic()
    try:
        outputs = await submitted
    except Exception as error:
        watch.ended(time.monotonic() - came, error)
        raise
    watch.ended(time.monotonic() - came)
    return outputs


def default_max_batch(version: Version) -> int:
    """What a deployment that names no max_batch gets: what the engine was built for."""
    given = version.details.get("max_batch")
    return given if isinstance(given, int) and given > 0 else _DEFAULT_MAX_BATCH


def has_fixed_rows(version: Version) -> bool:
    """Whether the engine cannot take more rows than it was built for."""
    return version.format.startswith("tensorrt")


def open_engine(version: Version, folder: Path, plan: Plan, threads: int) -> Engine:
    """Loads and warms an engine; takes seconds. Raises Problem."""
    runtime = runtimes.get(version.format)
    found = runtime.available()
    if not found.ok:
        raise Conflict(f"{version.format} cannot run here: {found.reason}", code="runtime_unavailable")
    max_batch = default_max_batch(version) if plan.max_batch is None else plan.max_batch
    options = LoadOptions(
        threads=threads if plan.threads is None else plan.threads,
        instances=plan.instances,
        precision=str(version.details.get("precision", "fp32")),
        max_batch=max_batch,
    )
    engine = runtime.load(folder, version.signature, options)
    try:
        warm(engine, version, max_batch, plan.instances)
    except BaseException:
        engine.close()
        raise
    return engine
