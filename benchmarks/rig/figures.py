"""Plain arithmetic on what was measured: percentiles without interpolation or correction, medians, ratios by round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Phase(NamedTuple):
    """One contestant for a few seconds. Nones: not measured in this kind of phase."""

    contestant: str
    workload: str
    concurrency: int
    round: int
    requests: int
    per_s: float
    p50_ms: float
    errors: int
    cpu_ms: float | None  # of the server's processes, per request
    memory_mb: float | None  # of the server's processes, what they share counted once
    load_1m: float
    p99_ms: float | None = None


class Cell(NamedTuple):
    """Medians over the rounds of one contestant at one workload and concurrency."""

    per_s: float
    p50_ms: float
    cpu_ms: float | None
    p99_ms: float | None
    errors: int


def percentile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least q per cent of all do not exceed. Raises ValueError without any."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)]


def median_of(values: Sequence[float | None]) -> float | None:
    """Of those that were measured."""
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def select(phases: Sequence[Phase], contestant: str, workload: str, concurrency: int) -> list[Phase]:
    return [p for p in phases if (p.contestant, p.workload, p.concurrency) == (contestant, workload, concurrency)]


def cell(phases: Sequence[Phase], contestant: str, workload: str, concurrency: int) -> Cell | None:
    """None where nothing was measured."""
    found = select(phases, contestant, workload, concurrency)
    if not found:
        return None
    return Cell(
        statistics.median(p.per_s for p in found),
        statistics.median(p.p50_ms for p in found),
        median_of([p.cpu_ms for p in found]),
        median_of([p.p99_ms for p in found]),
        sum(p.errors for p in found),
    )


def ratio(phases: Sequence[Phase], ours: str, theirs: str, workload: str, concurrency: int) -> float | None:
    """Median over the rounds of ours ÷ theirs in requests/s: of neighbours in time, so that a busy spell hits both."""
    mine = {p.round: p.per_s for p in select(phases, ours, workload, concurrency)}
    other = {p.round: p.per_s for p in select(phases, theirs, workload, concurrency)}
    return median_of([mine[r] / other[r] for r in sorted(mine.keys() & other.keys()) if other[r] > 0])


def best(phases: Sequence[Phase], contestant: str, workload: str) -> float | None:
    """The highest median requests/s over the concurrencies."""
    found = {p.concurrency for p in phases if (p.contestant, p.workload) == (contestant, workload)}
    cells = [cell(phases, contestant, workload, c) for c in found]
    return max((c.per_s for c in cells if c is not None), default=None)
