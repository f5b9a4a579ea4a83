"""From trials to an answer: who is judged on the test split, who wins, and what is published of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.domain.records import Made, Version
from workers.context import Context
from workers.optimizing.front import pareto, proven, sequence, undominated
from workers.optimizing.race import Race
from workers.trials import kept

BEYOND = 2  # members of the front that lose too much, but show what more speed would cost


@dataclass(frozen=True)
class Choice:
    """Made on the validation split alone. order: whose verdicts decide, in this order. shown: who is measured too."""

    order: tuple[str, ...]
    shown: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.order, *self.shown)))


def choose(race: Race) -> Choice:
    """The sequence; beside it the plain engine, the smallest that holds the bound, and what is next beyond it."""
    candidates = race.candidates()
    front = pareto(candidates)
    order = sequence(front, race.least)
    smallest = sorted((c for c in candidates if c.quality >= race.least), key=lambda c: (c.bytes, -c.quality))[:1]
    beyond = [c for c in front if c.quality < race.least][:BEYOND]
    return Choice(tuple(c.name for c in order), (race.base, *(c.name for c in (*smallest, *beyond))))


def judge_spec(race: Race, choice: Choice) -> dict[str, Any]:
    """The trial that measures them all on the test split, in one run."""
    baselines = [name for name in (race.base, race.tuned_base) if name and _key(race, name)]
    batches = sorted({1, race.batch, min(32, race.spec.max_batch)}) if race.batched else [1]
    return {
        "kind": "trial", "role": "judge", "model": race.model, "dataset": race.dataset, "number": len(race.trials),
        "candidates": {name: _key(race, name) for name in dict.fromkeys((*choice.names, *baselines))},
        "baselines": {name: _key(race, name) for name in baselines}, "reference": race.base, "batches": batches,
        "confidence": race.spec.confidence, "max_accuracy_drop": race.spec.max_accuracy_drop,
        "told": "the verdict on the test split",
    }  # fmt: skip


def settings_spec(race: Race, name: str) -> dict[str, Any]:
    """The trial that finds out how the winner is best deployed. It makes no choice of a version."""
    return {
        "kind": "trial", "role": "settings", "model": race.model, "dataset": race.dataset,
        "number": len(race.trials) + 1, "candidate": _key(race, name),
        "objective": race.spec.objective, "batch": race.batch, "told": f"settings for {race.design_told(name)}",
    }  # fmt: skip


def winner(race: Race, choice: Choice, judged: Mapping[str, Any]) -> str:
    """The fastest that is proven, by what the judge measured; else the plain engine of a baseline; where nothing can be
    proven with so few rows, the fastest of those that are not refuted."""
    verdicts = {name: str(row.get("verdict")) for name, row in judged["candidates"].items()}
    gains = {name: _gain(race, judged, name) for name in proven(choice.order, verdicts)}
    if found := [name for name in gains if gains[name] > 1]:  # what seemed faster in its own trial may not be
        return max(found, key=lambda name: gains[name])
    better = judged.get("better_baseline") or race.base
    for name in (race.base, better):
        if verdicts.get(name) == "accepted":
            return str(name)
    open_ones = [name for name in choice.order if verdicts.get(name) == "unproven"]
    return open_ones[-1] if open_ones else str(better)


def front_of(race: Race, judged: Mapping[str, Any], best: str) -> list[str]:
    """Of those that were judged, those that no other one beats in accuracy, speed and size together; and the winner."""
    rows = {name: row for name, row in judged["candidates"].items() if row.get("quality")}
    figures = {name: (row["quality"]["value"], _speed(race, row), -float(row["bytes"])) for name, row in rows.items()}
    return [name for name in rows if name in {best, *undominated(figures)}]


def _speed(race: Race, row: Mapping[str, Any]) -> float:
    speedups = row["speedup"]
    return float((speedups.get(str(race.batch)) or next(iter(speedups.values())))["ratio"])


def _gain(race: Race, judged: Mapping[str, Any], name: str) -> float:
    """As the judge measured it, all in one run."""
    rows = judged["candidates"]
    if race.spec.objective == "size":
        return float(rows[race.base]["bytes"]) / float(rows[name]["bytes"])
    return _speed(race, rows[name])


def publish(race: Race, name: str, judged: Mapping[str, Any], ctx: Context) -> Version:
    """The version of a candidate that was judged; its metrics are those of the test split. Raises NotFound."""
    row, job = judged["candidates"][name], race.trials[name]
    recipe = [{**link, "dataset": race.dataset} for link in job.spec["chain"]]
    key = _key(race, name)
    return kept.publish_judged(
        ctx.artifacts, ctx.catalog, key, row,
        parent=race.model,
        made_by=Made(job=job.id, spec={"kind": "optimize", "job": ctx.job.id, "candidate": name, "chain": recipe}),
        details={"recipe": recipe, "optimize": ctx.job.id}, verdict=row.get("verdict"),
        notes=(*kept.version_of(ctx.artifacts, key).notes, str(row["told"])),
    )  # fmt: skip


def _key(race: Race, name: str) -> str:
    report = race.report(name)
    return str(report["kept"]) if report and report.get("kept") else ""
