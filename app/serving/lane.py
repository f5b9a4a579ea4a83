"""One loaded version under a deployment: its engine, the queue in front of it, and what /predict has to know of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from app import runtimes
from app.domain.records import Signature, Tensor, Version
from app.domain.tensors import DTYPES
from app.errors import Conflict, Problem
from app.metrics import Meter
from app.runtimes import Arrays, Engine, LoadOptions
from app.serving.batcher import Batcher, Outputs

log = logging.getLogger("enginesmith.serving")
_DEFAULT_MAX_BATCH = 64
_WARM_S = 30.0  # no larger batch is tried once warming has taken this long


class Plan(NamedTuple):
    """What distinguishes one lane from another: the same plan needs no reload."""

    ref: str
    instances: int
    max_batch: int | None
    max_delay_ms: float
    max_queue: int


class Lane:
    """`with lane:` keeps it from being taken down while a request is between finding it and being queued."""

    def __init__(self, plan: Plan, version: Version, engine: Engine, meter: Meter) -> None:
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
        )
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

    async def infer(self, inputs: Arrays, *, deadline: float | None = None) -> Outputs:
        """See Batcher.submit."""
        return await self.batcher.submit(inputs, deadline=deadline)

    async def close(self, grace_s: float) -> None:
        """Lets whoever uses it finish, for at most `grace_s`; then ends the engine and answers whoever still waits."""
        until = time.monotonic() + grace_s
        try:
            await asyncio.wait_for(self._unused.wait(), grace_s)
        except TimeoutError:
            log.warning("%s was taken down with %d requests on it", self.plan.ref, self._users)
        await self.batcher.close(max(0.0, until - time.monotonic()))


def default_max_batch(version: Version) -> int:
    """What a deployment that names no max_batch gets: what the engine was built for."""
    given = version.details.get("max_batch")
    return given if isinstance(given, int) and given > 0 else _DEFAULT_MAX_BATCH


def open_engine(version: Version, folder: Path, plan: Plan, threads: int) -> Engine:
    """Loads and warms an engine; takes seconds. Raises Problem."""
    runtime = runtimes.get(version.format)
    found = runtime.available()
    if not found.ok:
        raise Conflict(f"{version.format} cannot run here: {found.reason}", code="runtime_unavailable")
    max_batch = default_max_batch(version) if plan.max_batch is None else plan.max_batch
    options = LoadOptions(
        threads=threads,
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


def warm(engine: Engine, version: Version, max_batch: int, instances: int = 1) -> None:
    """Runs every batch size that engines prepare for: the first run of a size costs milliseconds that no client pays.

    Where dimensions beside the batch are dynamic it takes the shapes that the engine was measured with; without
    any it does nothing, because a size made up here may not fit the network.
    """
    shapes = _known_shapes(version)
    if shapes is None:
        return
    fixed = all(-1 not in t.shape[1:] for t in version.signature.inputs) and version.signature.batched
    until = time.monotonic() + _WARM_S
    for rows in _sizes(max_batch) if version.signature.batched else [1]:
        inputs = {t.name: _zeros(t, shapes[t.name], rows) for t in version.signature.inputs}
        try:
            for _ in range(instances):
                engine.infer(inputs)
        except Problem:
            if fixed:
                raise
            log.info("%s does not run on zeros, and is not warmed", version.ref)
            return
        if time.monotonic() > until:
            log.warning("warming %s stopped at %d of %d rows: it took too long", version.ref, rows, max_batch)
            return


def _known_shapes(version: Version) -> dict[str, tuple[int, ...]] | None:
    given: dict[str, Any] = version.details.get("shapes") or {}
    found: dict[str, tuple[int, ...]] = {}
    for tensor in version.signature.inputs:
        measured = given.get(tensor.name)
        shape = tensor.shape if measured is None or len(measured) != len(tensor.shape) else tuple(measured)
        if any(n < 1 for axis, n in enumerate(shape) if axis != tensor.batch_axis):
            return None
        found[tensor.name] = shape
    return found


def _zeros(tensor: Tensor, shape: tuple[int, ...], rows: int) -> npt.NDArray[Any]:
    sized = [rows if axis == tensor.batch_axis and tensor.shape[axis] == -1 else n for axis, n in enumerate(shape)]
    dtype = DTYPES[tensor.dtype]
    return np.full(sized, "", dtype) if dtype.hasobject else np.zeros(sized, dtype)


def _sizes(max_batch: int) -> Iterator[int]:
    rows = 1
    while rows < max_batch:
        yield rows
        rows *= 2
    yield max_batch
