"""How far each sampler stayed behind the best that is known, after equally many trials of the same search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.domain.records import parse_ref
from workers.context import Context
from workers.search.study import Plan
from workers.trials import kept

RULE = (
    "Searches count as the same when model and data hold the same, and chain or estimator, space and first objective "
    "are equal. The budget is the smallest number of finished trials among them. Regret after b trials is how far the "
    "best of the first b lies from the best that any of these searches has found; of several searches with one sampler "
    "it is the mean."
)


def key_of(plan: Plan, ctx: Context) -> str:
    """The hash of what is searched, not of how."""
    spec, told = plan.spec, plan.spec.model_dump(mode="json")
    model = kept.content_of(ctx.version()) if spec.estimator is None else None
    data = kept.content_of(ctx.catalog.dataset(*parse_ref(str(ctx.job.dataset))))
    first = plan.objectives[0]
    same = {k: told[k] for k in ("chain", "estimator", "params", "space", *(("cv",) if spec.estimator else ()))}
    return kept.key_of(search=same, model=model, data=data, objective=[first.metric, first.direction])


def beside(plan: Plan, curve: Sequence[float | None], ctx: Context) -> dict[str, Any] | None:
    """Keeps this search's curve; the regret of every sampler where several ran, else None."""
    values = [value for value in curve if value is not None]
    if not values:
        return None
    key = key_of(plan, ctx)
    mine = {"sampler": plan.spec.sampler, "seed": plan.spec.seed, "pruner": plan.spec.pruner, "best": values}
    ctx.catalog.trials.note_curve(key, ctx.job.id, mine)
    return compare(ctx.catalog.trials.curves(key), plan.objectives[0].direction == "maximize")


def compare(curves: dict[str, dict[str, Any]], maximize: bool) -> dict[str, Any] | None:
    """curves: by job, `sampler` and `best`, the best figure after each trial. None where only one sampler ran."""
    samplers: dict[str, list[list[float]]] = {}
    for curve in curves.values():
        samplers.setdefault(str(curve["sampler"]), []).append(curve["best"])
    if len(samplers) < 2:
        return None
    budget = min(len(best) for all in samplers.values() for best in all)
    ends = [best[-1] for all in samplers.values() for best in all]
    known = max(ends) if maximize else min(ends)
    rows: dict[str, Any] = {}
    for sampler, all in sorted(samplers.items()):
        by_trial = [sum(abs(known - best[n]) for best in all) / len(all) for n in range(budget)]
        rows[sampler] = {"searches": len(all), "regret": by_trial[-1], "by_trial": by_trial}
    return {"budget": budget, "best_known": known, "samplers": rows, "jobs": sorted(curves), "rule": RULE}
