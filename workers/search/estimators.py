"""Searches over an estimator of scikit-learn: what may be asked, the grid, the specs of trials, and what was found.

Of this file only `check` imports scikit-learn, and nothing imports torch. The way of such a search:

    check(spec, dataset)                        before anything else; raises Unprocessable
    candidates = grid(spec)                     or those that a sampler draws
    trial_spec(spec, portion) for portion in portions(candidates, workers)
    found = results(reports of the trials)      one per candidate, in the order that they were given in
    summary(found), figures(spec, found)        parts of the report
    winner_spec(spec, found[best(found)]["params"])   whose report names what it `kept`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan, prod
from typing import Any

from app.domain import searching
from app.domain.estimators import named
from app.domain.records import Dataset
from app.domain.tuning import Range, SearchSpec
from app.errors import Unprocessable
from workers.search import halving

Params = dict[str, Any]
# One candidate's figures, as the trial that tried it reports them.
Result = Mapping[str, Any]


def check(spec: SearchSpec, dataset: Dataset | None = None) -> None:
    """Raises Unprocessable for an estimator that is not known or not for this data, parameters that it does not have,
    values that scikit-learn refuses, more folds than rows. Fits nothing but a few rows of noise."""
    from workers.search import scikit

    assert spec.estimator is not None
    named(spec.estimator)
    if dataset is not None and spec.cv > (rows := dataset.splits["train"].rows):
        raise Unprocessable(
            f"cv is {spec.cv}, and the training split of {dataset.ref} has {rows} rows",
            code="too_few_rows",
            hint="fewer folds, or more rows",
            errors=[{"loc": ["cv"], "msg": f"must be at most {rows}"}],
        )
    scikit.check(spec.estimator, dataset, spec.params, {name: _extremes(of) for name, of in spec.space.items()})
    if spec.sampler == "grid":
        candidates = len(grid(spec))
        if dataset is not None and spec.pruner == "halving":
            halving.rounds(candidates, dataset.splits["train"].rows, spec.cv, dataset.classes)


def grid(spec: SearchSpec) -> list[Params]:
    """Every combination of the choices, in the order of scikit-learn's ParameterGrid; whole ranges count as choices.
    Raises Unprocessable for a range without steps, and for too many combinations."""
    lists = {name: searching.steps_of(name, of, False) for name, of in spec.space.items()}
    searching.grid_size(lists)
    return list(searching.points(lists))


def trial_spec(
    spec: SearchSpec, params: Params | Sequence[Params], *, rows: int | None = None, number: int = 0
) -> dict[str, Any]:
    """A trial of one candidate or of several. rows: of the training split, drawn as successive halving draws them; all
    unless given. Its report: `results`, one per candidate; `values` of the (best) candidate."""
    candidates = [dict(params)] if isinstance(params, Mapping) else [dict(p) for p in params]
    return _spec("estimator", spec, number) | {"candidates": candidates, "cv": spec.cv, "rows": rows}


def winner_spec(spec: SearchSpec, params: Params, *, number: int = 0) -> dict[str, Any]:
    """The trial that fits one candidate to the whole training split and makes it an ONNX model. Its report names what
    it `kept`."""
    return _spec("estimator_winner", spec, number) | {"candidate": dict(params)}


def _spec(role: str, spec: SearchSpec, number: int) -> dict[str, Any]:
    return {
        "kind": "trial", "role": role, "dataset": spec.dataset, "number": number, "seed": spec.seed,
        "estimator": named(spec.estimator or ""), "params": dict(spec.params),
    }  # fmt: skip


def portions(candidates: Sequence[Params], workers: int) -> list[list[Params]]:
    """Candidates in portions of one trial each: at least eight portions a worker, so that all end at about the same
    time, and none so small that starting it is what costs. The order stays."""
    size = max(1, len(candidates) // (8 * max(1, workers)))
    return [list(candidates[at : at + size]) for at in range(0, len(candidates), size)]


def effort(portion: Sequence[Params]) -> float:
    """How long its fits take beside those of other portions, as far as their parameters tell: trees, or iterations."""
    told = ([p[name] for name in ("n_estimators", "max_iter") if name in p] for p in portion)
    return float(sum(prod(n for n in numbers if isinstance(n, int | float)) for numbers in told))


def results(
    reports: Sequence[Mapping[str, Any] | None], asked: Sequence[Mapping[str, Any]], why: Sequence[str | None] = ()
) -> list[Result]:
    """One per candidate, from the reports of trials and the specs that they had; a trial without a report counts as one
    whose candidates all failed. why: what is known of that, trial by trial."""
    found: list[Result] = []
    for report, spec, error in zip(reports, asked, why or [None] * len(reports), strict=True):
        if report is not None and len(report.get("results", ())) == len(spec["candidates"]):
            found += report["results"]
        else:
            told = error or "the trial was lost"
            found += [{"params": p, "scores": [], "error": told, "rows": spec.get("rows")} for p in spec["candidates"]]
    return found


def table(found: Sequence[Result]) -> list[dict[str, Any]]:
    """The rows of scikit-learn's `cv_results_`, with its names and its arithmetic, to the last digit. A candidate of
    which a fit failed, or scored NaN, has no mean and is ranked last."""
    import numpy as np

    folds = max((len(r["scores"]) for r in found), default=0)
    scores = np.full((len(found), max(folds, 1)), nan)
    for place, result in enumerate(found):
        given = [nan if s is None else s for s in result["scores"]]
        scores[place, : len(given)] = given
    means = np.average(scores, axis=1)
    deviations = np.sqrt(np.average((scores - means[:, np.newaxis]) ** 2, axis=1))
    rows = []
    for result, mean, deviation, rank in zip(found, means, deviations, _ranks(means), strict=True):
        row = {
            "params": dict(result["params"]),
            "mean_test_score": None if np.isnan(mean) else float(mean),
            "std_test_score": None if np.isnan(deviation) else float(deviation),
            "rank_test_score": rank,
            "split_test_scores": list(result["scores"]),
            "mean_fit_time": result.get("fit_s"),
            "mean_score_time": result.get("score_s"),
        }
        rows.append(row | {k: result[k] for k in ("error", "warnings", "rows", "cache_hit") if result.get(k)})
    return rows


def _ranks(means: Any) -> list[int]:
    """1 is the highest; equal ones share the better rank; NaN comes last, and is equal to NaN."""
    import numpy as np

    if np.isnan(means).all():
        return [1] * len(means)
    filled = -np.where(np.isnan(means), np.nanmin(means) - 1, means)
    return [int(n) + 1 for n in np.searchsorted(np.sort(filled), filled, side="left")]


def best(found: Sequence[Result]) -> int:
    """The place of the winner: the first of rank 1, as in GridSearchCV; of candidates tried on several numbers of rows
    the best of those with most. Raises Unprocessable where every one failed."""
    rows = table(found)
    most = max((r["rows"] for r in rows if r.get("rows")), default=None)
    able = [
        n for n, r in enumerate(rows) if r["mean_test_score"] is not None and (most is None or r.get("rows") == most)
    ]
    if not able:
        told = dict.fromkeys(str(r.get("error") or "its score is NaN") for r in rows)
        raise Unprocessable(
            f"none of the {len(rows)} candidates could be fitted and scored: {'; '.join(list(told)[:3])[:600]}",
            code="all_failed",
            hint="mend `space` or `params` by what scikit-learn says",
        )
    return min(able, key=lambda n: (-rows[n]["mean_test_score"], n))


def summary(found: Sequence[Result], scoring: str = "accuracy") -> dict[str, Any]:
    """Parts of a search's report: best_params, best_score, best_index, scoring, cv_results, notes. Raises Unprocessable
    where every candidate failed."""
    rows = table(found)
    place = best(found)
    failed = [row for row in rows if row["mean_test_score"] is None]
    told: dict[str, int] = {}
    for row in rows:
        for text in row.get("warnings", ()):
            told[text] = told.get(text, 0) + 1
    notes = [f"{count} of {len(rows)} candidates: {text}" for text, count in list(told.items())[:5]]
    if failed:
        why = next((str(row["error"]) for row in failed if row.get("error")), "its score was NaN")
        notes.append(f"{len(failed)} of {len(rows)} candidates failed and are ranked last; the first: {why}")
    if (same := sum(row["mean_test_score"] == rows[place]["mean_test_score"] for row in rows)) > 1:
        notes.append(f"{same} candidates share the best score: the first of them is the winner, as in GridSearchCV.")
    return {
        "best_params": rows[place]["params"],
        "best_score": rows[place]["mean_test_score"],
        "best_index": place,
        "scoring": scoring,
        "cv_results": rows,
        "notes": notes,
    }


def figures(spec: SearchSpec, found: Sequence[Result]) -> list[dict[str, Any]]:
    """A figure per searched parameter: every candidate's score over its values, and the best at each."""
    rows = [row for row in table(found) if row["mean_test_score"] is not None]
    made = [_figure(name, rows) for name in spec.space]
    return [figure for figure in made if figure][:8]


def _figure(name: str, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    points = [(row["params"][name], row["mean_test_score"], row["std_test_score"]) for row in rows]
    values: list[Any] = []
    for value, _, _ in points:
        if value not in values:
            values.append(value)
    if len(values) < 2:
        return None
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    values = sorted(values) if numbers else values
    tops = [max((p for p in points if p[0] == value), key=lambda p: p[1]) for value in values]
    y = {"label": "mean score over the folds"}
    best_of = f"best for each {name}"
    if not numbers:
        labels = [str(v) for v in values]
        series = [{"name": best_of, "x": list(range(len(values))), "y": [t[1] for t in tops], "labels": labels}]
        return {"title": f"Score by {name}", "kind": "bars", "x": {"label": name}, "y": y, "series": series}
    log = min(values) > 0 and max(values) / min(values) >= 100
    return {
        "title": f"Score by {name}",
        "kind": "points",
        "x": {"label": name, "log": log},
        "y": y,
        "series": [
            {"name": "candidates", "x": [p[0] for p in points], "y": [p[1] for p in points]},
            {
                "name": best_of, "x": values, "y": [t[1] for t in tops], "line": True,
                "low": [t[1] - t[2] for t in tops], "high": [t[1] + t[2] for t in tops],
            },
        ],
        "note": "Whiskers: one standard deviation over the folds.",
    }  # fmt: skip


def _extremes(of: list[Any] | Range) -> list[Any]:
    """The values to check: all choices, or the ends of a range."""
    if not isinstance(of, Range):
        return of
    return [int(v) if searching.is_whole(of, False) else v for v in (of.low, of.high)]
