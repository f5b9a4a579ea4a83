"""The role `estimator`: candidates for an estimator of scikit-learn, each judged by cross-validation. No torch."""

from __future__ import annotations

import importlib.metadata
import time
import warnings
from collections.abc import Iterator
from functools import cached_property
from math import isnan
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from sklearn.base import clone, is_classifier
from sklearn.model_selection import check_cv
from sklearn.utils import resample
from threadpoolctl import threadpool_limits

from app.domain.estimators import class_path
from app.domain.records import Dataset, parse_ref
from app.domain.specs import TrialSpec
from app.errors import Unprocessable
from workers.arrays import open_split
from workers.context import Context
from workers.passes import Outcome
from workers.search.scikit import make
from workers.trials import kept

Array = npt.NDArray[Any]
Fold = tuple[Array, Array]
# Values of the training rows from which on threads gain more than they cost.
THREADS_FROM = 500_000
# Their threads add up in whichever order they end: a score must not depend on that.
_UNORDERED = ("random_forest", "extra_trees")


class EstimatorTrial(BaseModel):
    """What a trial of this role is asked. params: for every candidate. rows: of the training split; None: all."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    estimator: str
    params: dict[str, Any] = {}
    candidates: list[dict[str, Any]] = Field(min_length=1)
    cv: int = Field(3, ge=2)
    rows: int | None = None
    seed: int = 0


def run(spec: TrialSpec, ctx: Context) -> Outcome:
    """The report's `results`: one per candidate, with the score of every fold, None where the fit failed or the score
    is NaN. `values.quality`: the mean of the best of them. Raises Unprocessable where there can be no such folds."""
    asked = EstimatorTrial.model_validate(spec.model_dump())
    assert ctx.job.dataset is not None
    record = ctx.catalog.dataset(*parse_ref(ctx.job.dataset))
    ctx.progress(0, len(asked.candidates), "candidates", phase="cross-validating")
    rows = Training(asked, record, ctx)
    content = kept.content_of(record)
    results = []
    with threadpool_limits(ctx.threads):
        for done, params in enumerate(asked.candidates, 1):
            key = _key(asked, rows.path, params, content)
            if (before := kept.find(ctx.artifacts, key)) is not None:
                results.append(before.report | {"params": params, "cache_hit": True})
            else:
                results.append(_result(asked, rows, params, ctx))
                if "error" not in results[-1]:  # of what failed only a new try can tell whether it would again
                    kept.keep(ctx.artifacts, key, f"{ctx.job.id}-{ctx.job.attempt}", None, {}, results[-1])
            ctx.progress(done, len(asked.candidates), "candidates")
    means = [float(np.average(r["scores"])) for r in results if None not in r["scores"]]
    report: dict[str, Any] = {"results": results, "kept": None}
    report["cache_hit"] = all(r.get("cache_hit") for r in results)
    metric = "accuracy" if record.y_dtype == "int64" else "r2"
    report["values"] = {"quality": max(means), metric: max(means)} if means else {}
    return Outcome(None, {}, report)


class Training:
    """The training split and its folds: read when the first candidate needs them, which may be never."""

    def __init__(self, asked: EstimatorTrial, record: Dataset, ctx: Context) -> None:
        self._asked, self._record, self._ctx = asked, record, ctx
        self.path = class_path(asked.estimator, record)

    @cached_property
    def arrays(self) -> Fold:
        record, folder = self._ctx.dataset_files()
        return flat(*open_split(record.splits["train"], folder).rows())

    @cached_property
    def folds(self) -> list[Fold]:
        return list(_folds(self._asked, make(self.path, {}, self._asked.seed), *self.arrays, self._record))


def _key(asked: EstimatorTrial, path: str, params: dict[str, Any], content: str) -> str:
    """What the scores of a candidate depend on. Every estimator that draws has the search's seed as its random_state,
    never None: the same fit gives the same scores."""
    versions = {name: importlib.metadata.version(name) for name in ("scikit-learn", "numpy")}
    return kept.key_of(
        role="estimator", data=content, estimator=path, params=asked.params | params, cv=asked.cv, rows=asked.rows,
        seed=asked.seed, scoring="score", versions=versions,
    )  # fmt: skip


def flat(x: Array, y: Array) -> tuple[Array, Array]:
    """Rows as scikit-learn takes them: x (rows, values) in its own dtype, y (rows,), or (rows, several numbers)."""
    return x.reshape(len(x), -1), y.reshape(len(y)) if y.ndim == 2 and y.shape[1] == 1 else y


def set_threads(estimator: Any, x: Array, threads: int | None) -> None:
    """Lets it use the threads that the worker has, where the work is worth them. None: back to one after another."""
    if "n_jobs" in estimator.get_params(deep=False):
        estimator.set_params(n_jobs=threads if threads and x.size >= THREADS_FROM else None)


def _folds(asked: EstimatorTrial, estimator: Any, x: Array, y: Array, record: Dataset) -> Iterator[Fold]:
    """scikit-learn's own for that `cv`: (rows to fit, rows to score) as row numbers. With fewer rows than there are,
    some of each are drawn as HalvingGridSearchCV draws them."""
    share = 1.0 if asked.rows is None else asked.rows / len(x)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a class with fewer rows than folds: its rows are spread all the same
            found = list(check_cv(asked.cv, y, classifier=is_classifier(estimator)).split(x, y))
    except ValueError as error:
        raise Unprocessable(
            f"the training split of {record.ref} cannot be cut into {asked.cv} folds: {error}",
            code="too_few_rows",
            hint="fewer folds, or more rows",
        ) from error
    for train, test in found:
        if asked.rows is None:
            yield train, test
        else:
            yield _some(train, share, asked.seed), _some(test, share, asked.seed)


def _some(rows: Array, share: float, seed: int) -> Array:
    return np.asarray(resample(rows, replace=False, random_state=seed, n_samples=int(share * len(rows))))


def _result(asked: EstimatorTrial, rows: Training, params: dict[str, Any], ctx: Context) -> dict[str, Any]:
    (x, y), folds = rows.arrays, rows.folds
    scores: list[float | None] = []
    fit_s: list[float] = []
    score_s: list[float] = []
    failed: str | None = None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for train, test in folds:
            began = time.perf_counter()
            fitted = began
            try:
                estimator = clone(make(rows.path, asked.params | params, asked.seed))
                set_threads(estimator, x, ctx.threads)
                estimator.fit(x[train], y[train])
                fitted = time.perf_counter()
                if asked.estimator in _UNORDERED:
                    set_threads(estimator, x, None)
                score = float(estimator.score(x[test], y[test]))
            except Exception as error:  # whatever a fit raises: GridSearchCV goes on as well, and scores it NaN
                score = float("nan")
                failed = failed or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            scores.append(None if isnan(score) else score)
            fit_s.append(fitted - began)
            score_s.append(time.perf_counter() - fitted)
    found: dict[str, Any] = {"params": params, "scores": scores}
    found |= {"fit_s": round(float(np.mean(fit_s)), 4), "score_s": round(float(np.mean(score_s)), 4)}
    if failed is None and None in scores:
        failed = "the score is NaN"
    lines = dict.fromkeys(f"{w.category.__name__}: {' '.join(str(w.message).split())[:200]}" for w in told)
    found |= {"error": failed} if failed else {}
    found |= {"warnings": list(lines)[:3]} if lines else {}
    return found | ({"rows": asked.rows} if asked.rows is not None else {})
