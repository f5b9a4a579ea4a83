"""The figures of a search's report, as data: history and best so far, importances, the Pareto front, regret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from workers.search.study import Plan

Figure = dict[str, Any]


def figures(plan: Plan, trials: Sequence[FrozenTrial], report: Mapping[str, Any]) -> list[Figure]:
    """report: its importances, Pareto front, regret and best so far."""
    made = [
        _history(plan, trials, report),
        *_importances(report),
        _pareto(plan, trials, report),
        _regret(plan, report),
    ]
    return [figure for figure in made if figure is not None]


def _history(plan: Plan, trials: Sequence[FrozenTrial], report: Mapping[str, Any]) -> Figure | None:
    able = [t for t in trials if t.state == TrialState.COMPLETE]
    if not able:
        return None
    metric = plan.objectives[0].metric
    numbers = [t.number for t in able]
    lost = len(trials) - len(able)
    return {
        "title": f"{_told(metric)} of every trial, and the best so far",
        "kind": "points",
        "x": {"label": "trial"},
        "y": {"label": _told(metric)},
        "series": [
            {"name": "trials", "x": numbers, "y": [float(t.values[0]) for t in able]},
            {"name": "best so far", "x": numbers, "y": list(report["best_so_far"]), "line": True},
        ],
        **({"note": f"{lost} trials that failed or were pruned are left out."} if lost else {}),
    }


def _importances(report: Mapping[str, Any]) -> list[Figure]:
    made = []
    for metric, found in report["importances"].items():
        if found:
            made.append(
                {
                    "title": f"What mattered for {_told(metric)}",
                    "kind": "bars",
                    "x": {"label": "key"},
                    "y": {"label": "share of the variance (fANOVA)"},
                    "series": [
                        {"name": _told(metric), "x": list(range(len(found))), "y": list(found.values()),
                         "labels": list(found)}
                    ],
                }
            )  # fmt: skip
    return made


def _pareto(plan: Plan, trials: Sequence[FrozenTrial], report: Mapping[str, Any]) -> Figure | None:
    if len(plan.objectives) < 2:
        return None
    across, up = plan.objectives[1], plan.objectives[0]
    able = [t for t in trials if t.state == TrialState.COMPLETE]
    front = sorted(report["pareto"], key=lambda p: p["values"][across.metric])
    return {
        "title": f"{_told(up.metric)} against {_told(across.metric)}",
        "kind": "points",
        "x": {"label": _told(across.metric)},
        "y": {"label": _told(up.metric)},
        "series": [
            {"name": "trials", "x": [float(t.values[1]) for t in able], "y": [float(t.values[0]) for t in able]},
            {
                "name": "Pareto front", "line": True, "labels": [f"trial {p['number']}" for p in front],
                "x": [p["values"][across.metric] for p in front], "y": [p["values"][up.metric] for p in front],
            },
        ],
        **({"note": "The front is of all objectives; the first two are drawn."} if len(plan.objectives) > 2 else {}),
    }  # fmt: skip


def _regret(plan: Plan, report: Mapping[str, Any]) -> Figure | None:
    regret = report["regret"]
    if regret is None:
        return None
    return {
        "title": f"Regret by sampler: {_told(plan.objectives[0].metric)} short of the best known",
        "kind": "lines",
        "x": {"label": "trials"},
        "y": {"label": "regret"},
        "series": [
            {"name": f"{sampler} ({of['searches']})", "x": list(range(1, len(of["by_trial"]) + 1)), "y": of["by_trial"]}
            for sampler, of in regret["samplers"].items()
        ],
        "note": regret["rule"],
    }


def _told(metric: str) -> str:
    return {"latency_ms": "latency (ms)", "bytes": "size (bytes)"}.get(metric, metric)
