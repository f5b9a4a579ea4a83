"""The role `judge`: measures what was chosen on the test split, which no choice has seen, and speed in one run."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from app.domain.records import Version
from app.domain.specs import TrialSpec
from app.errors import NotFound
from workers.context import Context
from workers.net import load
from workers.nn.data import Data
from workers.nn.interleaved import Timed
from workers.nn.loaded import load_engine
from workers.nn.predict import eager, sensible_batch
from workers.nn.predict import engine as asking
from workers.nn.quality import Answers, answers, paired, quality
from workers.nn.verdict import judge
from workers.passes import Outcome
from workers.trials import kept
from workers.trials.floor import floor
from workers.trials.speed import race

BINS = 40
FLOOR = "nothing at all"


class JudgeTrial(BaseModel):
    """candidates, baselines: keys that they are kept under, by name. The verdict is against the better baseline, by its
    figure on the test split: that can only make it harder. batches: rows that speed is measured with, against
    `reference`, one of the names; none of them measures no speed."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    candidates: dict[str, str] = Field(min_length=1)
    baselines: dict[str, str] = {}
    reference: str | None = None
    batches: list[int] = []
    confidence: float = 0.95
    max_accuracy_drop: float = 0.01


def run(spec: TrialSpec, ctx: Context) -> Outcome:
    """The report's `candidates` and `baselines`: name → quality, latency, speedup, bytes; of a candidate also its
    differences from every baseline, and the verdict. Raises NotFound for what is kept no more."""
    asked = JudgeTrial.model_validate(spec.model_dump())
    found = {name: _fetched(key, ctx) for name, key in (asked.baselines | asked.candidates).items()}
    data = ctx.dataset() if ctx.job.dataset else None
    given = {name: _answers(*of, data, name, ctx) for name, of in found.items()} if data is not None else {}
    rows = {name: _row(version, given.get(name), data, asked) for name, (version, _) in found.items()}
    better = max((n for n in asked.baselines if n in given), key=lambda n: given[n].value(), default=None)
    for name in asked.candidates if better else ():
        rows[name] |= _judged(name, str(better), given, asked)
    reference = asked.reference or next(iter(found))
    raced = dict(found)
    if asked.batches and (nothing := floor(found[reference][0], ctx)) is not None:
        raced[FLOOR] = nothing
    floors: dict[str, float] = {}
    figures: list[dict[str, Any]] = []
    for batch, timed in zip(asked.batches, race(raced, reference, asked.batches, ctx), strict=True):
        figures.append(_histogram(timed, batch))
        if FLOOR in raced:
            floors[str(batch)] = timed.latencies[FLOOR].p50_ms
        for name in found:
            rows[name]["latency"].append(timed.latencies[name].model_dump(mode="json"))
            rows[name]["speedup"][str(timed.latencies[name].batch)] = asdict(timed.ratios[name])
    report = {
        "candidates": {name: rows[name] for name in asked.candidates},
        "baselines": {name: rows[name] for name in asked.baselines},
        "better_baseline": better,
        "values": {},
        "floor_ms": floors,
        "figures": figures,
    }
    return Outcome(None, {}, report)


def _fetched(key: str, ctx: Context) -> tuple[Version, Path]:
    held = kept.find(ctx.artifacts, key)
    if held is None:
        raise NotFound(f"what was kept under {key[:12]} is gone", retryable=True)
    return kept.fetch(held, ctx.scratch / "kept", ctx)


def _answers(version: Version, folder: Path, data: Data, name: str, ctx: Context) -> Answers:
    ctx.progress(0, None, phase=f"measuring {name} on the {ctx.split} split")
    rows = data.fit_to(version.signature).split(ctx.split)
    batch = sensible_batch(rows.x.shape[1:])
    if version.format == "torch":
        return answers(eager(load(folder, version).module, ctx.device), rows, batch)
    with ExitStack() as stack:
        engine, most = load_engine(version, folder, ctx.threads, batch)
        stack.callback(engine.close)
        return answers(asking(engine, version.signature, most), rows, batch)


def _row(version: Version, found: Answers | None, data: Data | None, asked: JudgeTrial) -> dict[str, Any]:
    measured = None
    if found is not None and data is not None:
        measured = quality(found, data.ref, confidence=asked.confidence).model_dump(mode="json")
    return {
        "quality": measured, "bytes": version.bytes, "parameters": version.parameters, "macs": version.macs,
        "latency": [], "speedup": {},
    }  # fmt: skip


def _judged(name: str, better: str, given: dict[str, Answers], asked: JudgeTrial) -> dict[str, Any]:
    differences = {
        baseline: paired(given[name], given[baseline], asked.confidence)
        for baseline in asked.baselines
        if baseline in given
    }
    return {"differences": differences, "against": better} | judge(
        differences[better], asked.max_accuracy_drop
    ).told_whole()


def _histogram(timed: Timed, batch: int) -> dict[str, Any]:
    """Shares of calls by milliseconds, up to the slowest contestant's 95th percentile."""
    top = max(float(np.percentile(ms, 95)) for ms in timed.calls.values())
    edges = np.linspace(0, top, BINS + 1)
    series = []
    for name, ms in timed.calls.items():
        counts, _ = np.histogram(np.minimum(ms, top), edges)
        series.append({"name": name, "x": edges.tolist(), "y": (counts / len(ms)).tolist()})
    return {
        "title": f"Latency of a run of {batch} row{'s' if batch > 1 else ''}", "kind": "histogram",
        "x": {"label": "ms"}, "y": {"label": "share of the calls"}, "series": series,
    }  # fmt: skip
