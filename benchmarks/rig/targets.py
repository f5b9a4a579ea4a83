"""What was promised, and what was measured: every target as a figure of one and the same run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.rig.contestants import BARE, CONTESTANTS, OURS
from benchmarks.rig.figures import Phase, best, cell, ratio

CEILINGS = (BARE, "fixed")
SPLIT = "ours-split"
OURS_TOO = (OURS, "ours-v2", SPLIT)


class Target(NamedTuple):
    """value: None where this run has not measured what it takes."""

    told: str
    value: float | None
    bound: float
    at_least: bool
    unit: str = "×"

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def open_loop_name(rate: float) -> str:
    """The workload under which phases at a constant rate are kept."""
    return f"tiny-binary at {rate:g}/s"


def best_peer(phases: Sequence[Phase], workload: str) -> tuple[str, float] | None:
    """Name and requests/s of the fastest that is neither a ceiling nor ours."""
    names = [c.name for c in CONTESTANTS if c.name not in (*CEILINGS, *OURS_TOO)]
    found = [(name, per_s) for name in names if (per_s := best(phases, name, workload)) is not None]
    return max(found, key=lambda pair: pair[1], default=None)


def targets(phases: Sequence[Phase], many: int, rate: float, app_mb: float | None) -> list[Target]:
    """many: the concurrency that stands for many clients. app_mb: RSS of the app's process with the tiny model."""
    loaded = cell(phases, OURS, "tiny-binary", many)
    alone, bare = cell(phases, OURS, "tiny-binary", 1), cell(phases, BARE, "tiny-binary", 1)
    paced = cell(phases, OURS, open_loop_name(rate), 0)
    engine = best(phases, BARE, "resnet-binary")
    ours_binary, ours_jpeg = (
        max(filter(None, (best(phases, name, workload) for name in (OURS, SPLIT))), default=None)
        for workload in ("resnet-binary", "resnet-jpeg")
    )
    peer = best_peer(phases, "resnet-jpeg")
    above = alone.p50_ms - bare.p50_ms if alone and bare else None
    at = f"at concurrency {many}"
    return [
        Target(f"tiny, binary, {at}: ÷ Triton", ratio(phases, OURS, "triton", "tiny-binary", many), 3.0, True),
        Target(f"tiny, binary, {at}: ÷ hand-written", ratio(phases, OURS, "batching", "tiny-binary", many), 1.4, True),
        Target(f"tiny, binary, {at}: CPU a request", loaded.cpu_ms if loaded else None, 0.15, False, " ms"),
        Target(f"tiny, JSON, {at}: ÷ hand-written", ratio(phases, OURS, "batching", "tiny-json", many), 1.2, True),
        Target("tiny, binary, one client: p50 above the bare engine's", above, 0.3, False, " ms"),
        Target(f"tiny, binary, {rate:g}/s: p99", paced.p99_ms if paced else None, 1.5, False, " ms"),
        Target("ResNet-18, binary: ÷ bare engine", _share(ours_binary, engine), 0.95, True),
        Target(f"ResNet-18, JPEG: ÷ {peer[0] if peer else 'peers'}", _share(ours_jpeg, peer and peer[1]), 1.1, True),
        Target("memory of the app with one tiny model", app_mb, 160, False, " MB"),
    ]


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
