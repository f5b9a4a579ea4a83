"""The role `chain`: makes a candidate by a chain of specs, judges it on the validation split, measures its speed."""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.domain import specs
from app.domain.records import Version
from app.domain.specs import TrialSpec
from workers.context import Context
from workers.passes import Outcome
from workers.trials import kept, speed
from workers.trials.links import End, host, keys_of, parse, walk


class Measure(BaseModel):
    """Speed with so many rows, in turns with the candidate kept under `against`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    batch: int = Field(1, ge=1)
    against: str | None = None
    # Before anything is trained: the candidate's untrained twin must be so many times faster, or the trial ends.
    at_least: float | None = None


class ChainTrial(BaseModel):
    """What a trial of this role is asked beyond the fields of every trial. wants: figures beyond the usual ones:
    `latency_ms`, `throughput`."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    chain: list[dict[str, Any]] = Field(min_length=1)
    wants: list[str] = []
    measure: Measure | None = None


def run(spec: TrialSpec, ctx: Context) -> Outcome:
    """The report's `values`: quality, loss, parameters, macs, bytes, sparsity; where asked latency_ms, throughput and
    speedup. Raises whatever a pass raises."""
    began = time.perf_counter()
    asked = ChainTrial.model_validate(spec.model_dump())
    assert spec.model is not None
    links = parse(asked.chain, spec.model, spec.dataset)
    ctx = ctx.staged("chain", split="val", times=False)
    ctx.catalog.trim_history(ctx.job.id, 0)
    measure = asked.measure or (Measure() if {"latency_ms", "throughput"} & set(asked.wants) else None)
    key = _whole_key(links, asked, measure, ctx)
    before = kept.find(ctx.artifacts, key)
    if before is not None and _still_kept(before, ctx):
        ctx.log("computed before, from the same model, data and specs")
        return Outcome(None, {}, before.report | {"cache_hit": True})
    if measure is not None and measure.at_least is not None and _trains(links):
        slow = _quick_look(links, measure, ctx)
        if slow is not None:
            kept.keep(ctx.artifacts, key, ctx.job.id, None, {}, slow)
            return Outcome(None, {}, slow)
    end = walk(links, ctx)
    report: dict[str, Any] = {"kept": end.key, "cache_hit": False, "links": end.reports, "cached_links": end.cached}
    report["quality"] = _quality(end.version)
    report["values"] = _values(end)
    if measure is not None:
        timed = speed.measure(end.version, end.folder, measure.batch, measure.against, ctx)
        report["speed"] = timed
        report["values"] |= {k: timed[k] for k in ("latency_ms", "throughput", "speedup") if k in timed}
    report["seconds"] = round(time.perf_counter() - began, 3)
    kept.keep(ctx.artifacts, key, ctx.job.id, None, {}, report)
    return Outcome(None, {}, report)


def _whole_key(links: list[specs.Spec], asked: ChainTrial, measure: Measure | None, ctx: Context) -> str:
    last = keys_of(ctx.source()[0], links, ctx, ctx.split)[-1]
    about: dict[str, Any] = {"role": "trial", "chain": last, "wants": sorted(asked.wants)}
    if measure is not None:
        about |= {"measure": measure.model_dump(), "host": host(), "threads": ctx.threads}
    return kept.key_of(**about)


def _still_kept(before: kept.Kept, ctx: Context) -> bool:
    """Whether what the report names is there. It may be older than the report, and was then swept away before it."""
    made = before.report.get("kept")
    return made is None or kept.find(ctx.artifacts, str(made)) is not None


def _trains(links: list[specs.Spec]) -> bool:
    return any(isinstance(link, specs.TrainSpec) or getattr(link, "finetune", None) for link in links)


def _quick_look(links: list[specs.Spec], measure: Measure, ctx: Context) -> dict[str, Any] | None:
    """The report of a candidate whose untrained twin is not fast enough; None: it is worth its training."""
    ctx.progress(0, None, phase="a quick look at its speed")
    quick = [_untrained(link) for link in links if not isinstance(link, specs.TrainSpec)]
    end = walk(quick, ctx.staged("quick"), keeping=False)
    timed = speed.measure(end.version, end.folder, measure.batch, measure.against, ctx, rounds=5)
    assert measure.at_least is not None
    if timed["speedup_high"] >= measure.at_least:
        return None
    why = f"a quick look: {timed['speedup']:.2f}× as fast where {measure.at_least:.2f}× is the least of interest"
    ctx.log(why)
    values = {k: v for k, v in _values(end).items() if k not in ("quality", "loss")}
    values |= {k: timed[k] for k in ("latency_ms", "throughput", "speedup")}
    return {"kept": None, "cache_hit": False, "skipped": why, "values": values, "speed": timed, "links": end.reports}


def _untrained(link: specs.Spec) -> specs.Spec:
    if isinstance(link, specs.QuantizeSpec):
        changes = {"mode": "ptq", "finetune": None, "max_accuracy_drop": None}
        return link.model_copy(update=changes | {"calibration_samples": min(link.calibration_samples, 32)})
    return link.model_copy(update={"finetune": None}) if getattr(link, "finetune", None) else link


def _quality(version: Version) -> dict[str, Any] | None:
    quality = version.metrics.quality
    return quality.model_dump(mode="json") if quality else None


def _values(end: End) -> dict[str, float]:
    version = end.version
    quality = version.metrics.quality
    losses = [loss for report in end.reports if (loss := _final_loss(report)) is not None]
    found: dict[str, float | None] = {
        "quality": quality.value if quality else None,
        (quality.name if quality else "accuracy"): quality.value if quality else None,
        "loss": losses[-1] if losses else None,
        "parameters": version.parameters,
        "macs": version.macs,
        "bytes": version.bytes,
        "sparsity": version.sparsity,
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _final_loss(report: dict[str, Any]) -> float | None:
    trained = report.get("finetune") if isinstance(report.get("finetune"), dict) else report
    value = trained.get("final_loss") if trained else None
    return float(value) if value is not None else None
