"""What a search has found, for its report: every trial, the best so far, what mattered, the front, the regret."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from math import ceil
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from app.domain.records import Job, parse_ref
from workers.context import Context
from workers.search import drawing, regret
from workers.search.study import Plan, owners, values_of

_STATES = {
    TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed",
    TrialState.RUNNING: "running", TrialState.WAITING: "waiting",
}  # fmt: skip
# Fewer say nothing of what mattered; the time that it takes grows with the square of their number.
_FOR_IMPORTANCE, _MOST_FOR_IMPORTANCE = 4, 400
# Choices that fANOVA takes one by one: the time that it takes doubles with each.
_ONE_BY_ONE = 8


@dataclass(frozen=True)
class Told:
    """A search, its trials as the study has them, and their jobs by name."""

    plan: Plan
    trials: list[FrozenTrial]
    jobs: Mapping[str, Job]

    @cached_property
    def _owners(self) -> dict[int, int]:
        return owners(self.plan, self.trials)

    def owner(self, number: int) -> int:
        """The first trial of the same point: the one that has a job."""
        return self._owners[number]

    def job(self, number: int) -> Job | None:
        return self.jobs.get(f"{self.owner(number):04d}")

    def report(self, number: int) -> dict[str, Any]:
        job = self.job(number)
        return job.result.report if job is not None and job.result is not None else {}

    def why(self, number: int) -> str | None:
        """Why a trial failed."""
        job = self.job(number)
        return _why(self.plan, job) if job is not None else "it was lost"


def named(plan: Plan, values: Sequence[float]) -> dict[str, float]:
    return {o.metric: value for o, value in zip(plan.objectives, values, strict=True)}


def row(plan: Plan, trial: FrozenTrial, job: Job | None) -> dict[str, Any]:
    """One trial of the history."""
    report = job.result.report if job is not None and job.result is not None else {}
    failed = trial.state == TrialState.FAIL
    return {
        "trial": trial.number,
        "params": plan.params(trial),
        "values": named(plan, trial.values) if trial.state == TrialState.COMPLETE else report.get("values"),
        "status": _STATES[trial.state],
        "seconds": _seconds(job),
        "job": job.id if job is not None else None,
        "cache_hit": bool(report.get("cache_hit")) or None,
        "same_as": int(job.spec["number"]) if job is not None and job.spec["number"] != trial.number else None,
        "pruned_after": report.get("pruned_after"),
        "error": (_why(plan, job) if job is not None else "it was lost") if failed else None,
    }


def _seconds(job: Job | None) -> float | None:
    if job is None or not job.started_at or not job.finished_at:
        return None
    return round((datetime.fromisoformat(job.finished_at) - datetime.fromisoformat(job.started_at)).total_seconds(), 3)


def _why(plan: Plan, job: Job) -> str:
    if job.status == "cancelled":
        return "it was cancelled"
    if job.error:
        return str(job.error.get("detail"))
    try:
        values_of(plan, job.result.report if job.result is not None else {})
    except ValueError as error:
        return str(error)
    except Exception as error:
        return str(getattr(error, "detail", error))
    return "it failed"


def best_of(plan: Plan, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """By the first objective, then by the others in their order, then the earliest."""
    able = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return min(able, key=lambda trial: (*losses(plan, trial), trial.number), default=None)


def losses(plan: Plan, trial: FrozenTrial) -> list[float]:
    """The figures with a sign that makes less better."""
    return [
        -value if o.direction == "maximize" else value for o, value in zip(plan.objectives, trial.values, strict=True)
    ]


def front(plan: Plan, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those that no other one beats: none is as good in all objectives and better in one. Of equals the first."""
    able = [(trial, losses(plan, trial)) for trial in trials if trial.state == TrialState.COMPLETE]
    found: list[tuple[FrozenTrial, list[float]]] = []
    for trial, loss in sorted(able, key=lambda pair: (pair[1], pair[0].number)):
        if not any(all(a <= b for a, b in zip(other, loss, strict=True)) for _, other in found):
            found.append((trial, loss))
    return [trial for trial, _ in found]


def best_so_far(plan: Plan, trials: Sequence[FrozenTrial]) -> list[float | None]:
    """After each trial that came to an end, by number: the best first objective so far."""
    found: list[float | None] = []
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            value, last = float(trial.values[0]), found[-1] if found else None
            pick = max if plan.objectives[0].direction == "maximize" else min
            found.append(value if last is None else pick(last, value))
    return found


def importances(plan: Plan, trials: Sequence[FrozenTrial], place: int) -> dict[str, float] | None:
    """How much of an objective's variance each key explains, of those that trials came to an end with: fANOVA (Hutter,
    Hoos and Leyton-Brown, ICML 2014). Of many trials some, evenly spread; many choices count by their place in order.
    None where there are too few trials, or nothing varies."""
    able = [t for t in trials if t.state == TrialState.COMPLETE and len(t.params) == len(plan.dimensions)]
    able = able[:: ceil(len(able) / _MOST_FOR_IMPORTANCE)] if able else able
    varied = [k for k in plan.dimensions if len({json.dumps(t.params[k], default=str) for t in able}) > 1]
    if len(able) < _FOR_IMPORTANCE or not varied or len({t.values[place] for t in able}) < 2:
        return None
    within = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for trial in able:
        seen = {k: _in_order(trial.params[k], trial.distributions[k]) for k in varied}
        within.add_trial(
            optuna.create_trial(
                params={k: value for k, (value, _) in seen.items()},
                distributions={k: of for k, (_, of) in seen.items()},
                value=trial.values[place],
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, max_depth=32, seed=0)
        try:
            found = optuna.importance.get_param_importances(within, evaluator=evaluator)
        except (ValueError, RuntimeError):  # all trees are of one leaf
            return None
    return {k: round(float(found.get(k, 0.0)), 4) for k in sorted(plan.dimensions, key=lambda k: -found.get(k, 0.0))}


def _in_order(value: Any, of: BaseDistribution) -> tuple[Any, BaseDistribution]:
    """One of many choices as its place among them: numbers by size, others as they are listed."""
    if not isinstance(of, CategoricalDistribution) or len(of.choices) <= _ONE_BY_ONE:
        return value, of
    numbers = sorted(choice for choice in of.choices if isinstance(choice, int | float))
    ordered: list[Any] = list(numbers) if len(numbers) == len(of.choices) else list(of.choices)
    return ordered.index(value), IntDistribution(0, len(ordered) - 1)


def report(
    told: Told, study: optuna.Study, best: FrozenTrial, judged: Mapping[str, Any], ctx: Context
) -> dict[str, Any]:
    """The whole report of a search over a chain."""
    plan, trials = told.plan, told.trials
    history = [row(plan, trial, told.job(trial.number)) for trial in trials]
    whole = told.report(best.number)
    winner = {
        "number": best.number,
        "params": plan.params(best),
        "values": named(plan, best.values),
        "job": told.jobs[f"{told.owner(best.number):04d}"].id,
        "chain": told.jobs[f"{told.owner(best.number):04d}"].spec["chain"],
        "validation": whole.get("quality"),
        "test": judged.get("quality"),
    }
    notes = [judged["note"]] if judged.get("note") else []
    notes += _notes(plan, history)
    found = common(plan, trials, history, ctx)
    if None in found["importances"].values():
        notes.append(
            f"No importances: they take {_FOR_IMPORTANCE} finished trials at least, between which something differs."
        )
    return found | {
        "best": winner,
        "best_params": winner["params"],
        "best_score": best.values[0],
        "quality": judged.get("quality"),
        "notes": notes,
    }


def common(plan: Plan, trials: list[FrozenTrial], history: list[dict[str, Any]], ctx: Context) -> dict[str, Any]:
    """What the report of every search has, whatever it is over. Keeps its curve for others over the same."""
    spec = plan.spec
    curve = best_so_far(plan, trials)
    mattered = {o.metric: importances(plan, trials, n) for n, o in enumerate(plan.objectives)}
    pareto = front(plan, trials) if len(plan.objectives) > 1 else []
    beside = regret.beside(plan, curve, ctx)
    counts = {state: sum(r["status"] == state for r in history) for state in ("complete", "pruned", "failed")}
    made: dict[str, Any] = {
        "sampler": spec.sampler,
        "pruner": spec.pruner,
        "seed": spec.seed,
        "space": spec.model_dump(mode="json")["space"],
        "objectives": [{"metric": o.metric, "direction": o.direction} for o in plan.objectives],
        "trials": {"asked": plan.total, **counts, "repeated": sum(r.get("same_as") is not None for r in history),
                   "cache_hits": sum(bool(r.get("cache_hit")) for r in history)},
        "history": [{k: v for k, v in r.items() if v is not None} for r in history],
        "best_so_far": curve,
        "importances": mattered,
        "pareto": [
            {"number": t.number, "params": plan.params(t), "values": named(plan, t.values)} for t in pareto
        ],
        "regret": beside,
    }  # fmt: skip
    return made | {"figures": drawing.figures(plan, trials, made)}


def _notes(plan: Plan, history: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    failed = [r for r in history if r["status"] == "failed"]
    if failed:
        found.append(f"{len(failed)} of {len(history)} trials failed; the first: {str(failed[0].get('error'))[:300]}")
    if same := sum(r.get("same_as") is not None for r in history):
        found.append(
            "1 trial was of a point that was tried before: it has its figures, and cost nothing."
            if same == 1
            else f"{same} trials were of points that were tried before: they have their figures, and cost nothing."
        )
    if plan.spec.parallel > 1 and plan.spec.sampler in ("tpe", "gp", "nsga2"):
        found.append(f"{plan.spec.parallel} trials at a time: what is tried next depends on which ends first.")
    return found


def name_of_winner(plan: Plan, dataset: str) -> str:
    """What the winner of a search over an estimator is called, where nobody says."""
    return (
        parse_ref(plan.spec.model)[0] if plan.spec.model else f"{dataset.partition('@')[0][:40]}-{plan.spec.estimator}"
    )
