"""A shadow: copies of answered requests go to another version too, and its answers are compared, counted, forgotten."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from app.errors import TAKEN_DOWN, Overloaded, Problem
from app.metrics import KEPT_S
from app.serving.lane import Lane

log = logging.getLogger("enginesmith.serving")
_MOST = 32  # copies in flight
_MOST_BYTES = 64 * 1024 * 1024  # that they hold; one alone may be larger
_PATIENCE_S = 30.0
_MANY = 64 * 1024  # numbers; above this they are compared in a thread
_LOG_S = 10.0
Named = Mapping[str, npt.NDArray[Any]]


class Difference(NamedTuple):
    """rows: those compared. agreed: those whose first output of scores has its maximum at the same place; None without
    such an output. max_abs: over all finite numbers. not_finite: numbers that are NaN or infinite on one side only."""

    rows: int
    agreed: int | None
    max_abs: float
    not_finite: int


@dataclass
class Tally:
    """What became of the copies."""

    compared: int = 0
    failed: int = 0
    dropped: int = 0
    rows: int = 0
    agreed: int = 0
    max_abs: float = 0.0
    not_finite: int = 0
    seconds: float = 0.0
    gone: float | None = None  # since when there is no such shadow

    def is_over(self, served: bool, now: float) -> bool:
        """Whether it has been gone for so long that nobody needs to be told of it. now: monotonic."""
        self.gone = None if served else now if self.gone is None else self.gone
        return self.gone is not None and now - self.gone >= KEPT_S

    def add(self, found: Difference, seconds: float) -> None:
        self.compared += 1
        self.seconds += seconds
        self.max_abs = max(self.max_abs, found.max_abs)
        self.not_finite += found.not_finite
        if found.agreed is not None:
            self.rows += found.rows
            self.agreed += found.agreed

    def figures(self) -> dict[str, Any]:
        return {
            "compared": self.compared,
            "failed": self.failed,
            "dropped": self.dropped,
            "max_abs_diff": self.max_abs,
            "not_finite": self.not_finite,
            "agreement": round(self.agreed / self.rows, 6) if self.rows else None,
            "mean_ms": round(self.seconds / self.compared * 1e3, 3) if self.compared else None,
        }


class Mirror:
    """Bounded: what the shadow cannot keep up with is dropped and counted. Nothing here ever raises to its caller."""

    def __init__(self, lane: Lane, percent: float, tally: Tally, threads: Executor) -> None:
        self.lane = lane
        self.percent = percent
        self.tally = tally
        self._threads = threads
        self._flying: set[asyncio.Task[None]] = set()
        self._bytes = 0
        self._logged = float("-inf")

    def take(self, inputs: Named, outputs: Named) -> None:
        """A request that has just been answered with `outputs`."""
        if random.random() * 100 >= self.percent:
            return
        size = sum(a.nbytes for a in inputs.values()) + sum(a.nbytes for a in outputs.values())
        if self._flying and (len(self._flying) >= _MOST or self._bytes + size > _MOST_BYTES):
            self.tally.dropped += 1
            return
        task = asyncio.get_running_loop().create_task(self._compare(inputs, outputs))
        self._flying.add(task)
        self._bytes += size

        def landed(task: asyncio.Task[None]) -> None:
            self._flying.discard(task)
            self._bytes -= size

        task.add_done_callback(landed)

    def stop(self) -> None:
        """Gives up the copies in flight: the lane is about to be taken down."""
        for task in self._flying:
            task.cancel()

    async def _compare(self, inputs: Named, outputs: Named) -> None:
        began = time.monotonic()
        try:
            with self.lane:
                theirs = await self.lane.infer(inputs, deadline=began + _PATIENCE_S)
            took = time.monotonic() - began
            if sum(a.size for a in outputs.values()) > _MANY:
                loop = asyncio.get_running_loop()
                self.tally.add(await loop.run_in_executor(self._threads, compare, outputs, theirs), took)
            else:
                self.tally.add(compare(outputs, theirs), took)
        except Exception as error:
            if isinstance(error, Overloaded) or (isinstance(error, Problem) and error.code == TAKEN_DOWN):
                self.tally.dropped += 1
                return
            self.tally.failed += 1
            if began - self._logged > _LOG_S:  # a line for each would be a flood
                self._logged = began
                log.warning("the shadow %s failed: %s", self.lane.plan.ref, error)


def compare(ours: Named, theirs: Named) -> Difference:
    """How far two versions' answers to one request lie apart, in outputs of the same name. Arrays of any dtype; strings
    count for nothing but agreement. Raises ValueError where nothing can be compared."""
    rows, agreed, max_abs, not_finite = 0, None, 0.0, 0
    common = [name for name in ours if name in theirs]
    if not common:
        raise ValueError(f"no output in common: {sorted(ours)} and {sorted(theirs)}")
    for name in common:
        a, b = ours[name], theirs[name]
        if a.shape != b.shape:
            raise ValueError(f"output {name!r} has shape {list(a.shape)}, and the shadow's {list(b.shape)}")
        if a.dtype.hasobject or b.dtype.hasobject or a.size == 0:
            continue
        if agreed is None and a.ndim == 2 and a.shape[1] > 1 and a.dtype.kind == "f":
            rows, agreed = a.shape[0], int((a.argmax(axis=1) == b.argmax(axis=1)).sum())
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        with np.errstate(all="ignore"):
            apart = np.abs(wide_a - wide_b)
        finite = np.isfinite(apart)
        if finite.all():
            max_abs = max(max_abs, float(apart.max()))
            continue
        same = (wide_a == wide_b) | (np.isnan(wide_a) & np.isnan(wide_b))
        not_finite += int((~finite & ~same).sum())
        max_abs = max(max_abs, float(apart.max(where=finite, initial=0.0)))
    return Difference(rows, agreed, max_abs, not_finite)


def exposition(tallies: Mapping[tuple[str, str], Tally]) -> Iterator[str]:
    """Lines of Prometheus' text form. tallies: by deployment and the shadow's ref."""
    if not tallies:
        return
    told = sorted(tallies.items())
    yield "# HELP enginesmith_shadow_requests_total Copies sent to a shadow, by what became of them"
    yield "# TYPE enginesmith_shadow_requests_total counter"
    for (name, ref), tally in told:
        for outcome in ("compared", "failed", "dropped"):
            at = f'deployment="{name}",model="{ref}",outcome="{outcome}"'
            yield f"enginesmith_shadow_requests_total{{{at}}} {getattr(tally, outcome)}"
    for metric, attribute, kind, about in _FAMILIES:
        yield f"# HELP enginesmith_shadow_{metric} {about}"
        yield f"# TYPE enginesmith_shadow_{metric} {kind}"
        for (name, ref), tally in told:
            yield f'enginesmith_shadow_{metric}{{deployment="{name}",model="{ref}"}} {getattr(tally, attribute)}'


_FAMILIES = (
    ("rows_total", "rows", "counter", "Rows of scores that were compared"),
    ("rows_agreed_total", "agreed", "counter", "Rows whose maximum was at the same place"),
    ("not_finite_total", "not_finite", "counter", "Numbers that were NaN or infinite on one side only"),
    ("max_abs_diff", "max_abs", "gauge", "Largest absolute difference seen"),
    ("seconds_total", "seconds", "counter", "Sum of the shadow's times"),
)
