"""A whole search over an estimator, its trials real: equal to scikit-learn's own, and its winner a version."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search.conftest import Field
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.tree import DecisionTreeClassifier

from app.domain.records import Dataset, Job, Split, now
from app.storage.registry import publish_dataset, put_files
from workers.passes import apply

GRID = {"n_estimators": [3, 6], "max_depth": [1, 3], "min_samples_split": [2, 5]}


@pytest.fixture
def iris(field: Field, tmp_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Publishes iris@1; gives its training split."""
    field.parts = replace(field.parts, apply=apply)
    x, y = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].astype(np.float32), y[order].astype(np.int64)
    cuts = {"train": slice(0, 90), "val": slice(90, 110), "test": slice(110, 150)}
    folder = tmp_path / "iris"
    folder.mkdir()
    for name, cut in cuts.items():
        np.save(folder / f"x_{name}.npy", x[cut])
        np.save(folder / f"y_{name}.npy", y[cut])
    files, size = put_files(field.parts.artifacts, folder, "datasets/iris/files/1")
    record = Dataset(
        name="iris", version=1, kind="arrays", folder="datasets/iris/files/1", files=files, bytes=size, x_shape=(4,),
        x_dtype="float32", y_dtype="int64", classes=3, split_note="given", created_at=now(),
        splits={n: Split(rows=len(x[c]), x=f"x_{n}.npy", y=f"y_{n}.npy") for n, c in cuts.items()},
    )  # fmt: skip
    publish_dataset(field.parts.artifacts, field.parts.catalog, record)
    return x[cuts["train"]], y[cuts["train"]]


def run(field: Field, id: str = "s1", **asked: Any) -> Job:
    spec = {"kind": "search", "dataset": "iris", "estimator": "random_forest", "cv": 3, "space": GRID} | asked
    job = Job(id=id, kind="search", spec=spec, dataset="iris@1", created_at=now())
    field.parts.queue.enqueue(field.parts.catalog.add(job))
    return field.finish(id)


def test_a_grid_is_grid_search_cv(field: Field, iris: tuple[np.ndarray, np.ndarray]) -> None:
    job = run(field, sampler="grid", model="forest")
    assert job.status == "succeeded", job.error
    assert job.result is not None
    found = job.result.report
    theirs = GridSearchCV(RandomForestClassifier(random_state=0), GRID, cv=3).fit(*iris)
    assert found["best_params"] == theirs.best_params_
    assert [row["params"] for row in found["cv_results"]] == list(theirs.cv_results_["params"])
    assert [row["mean_test_score"] for row in found["cv_results"]] == list(theirs.cv_results_["mean_test_score"])
    assert found["trials"]["complete"] == 8
    assert found["quality"]["split"] == "test"
    assert found["splits"] == {
        "dataset": "iris@1", "rows": {"train": 90, "val": 20, "test": 40}, "note": "given",
    }  # fmt: skip
    assert job.result.model == "forest@1"
    version = field.parts.catalog.version("forest", 1)
    assert (version.format, version.made_by.job) == ("onnx", "s1")
    assert job.history


def test_the_same_candidate_is_fitted_once(
    field: Field, iris: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[dict[str, Any]] = []
    whole = DecisionTreeClassifier.fit

    def fit(self: Any, *args: Any, **kwargs: Any) -> Any:
        fits.append(self.get_params())
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(DecisionTreeClassifier, "fit", fit)
    tree = {"estimator": "decision_tree", "sampler": "grid", "space": {"max_depth": [1, 2, 3]}}
    first = run(field, "s1", **tree)
    assert (len(fits), first.cache_hit) == (3 * 3 + 1, False)
    fits.clear()
    again = run(field, "s2", **tree)
    assert (fits, again.cache_hit) == ([], True)
    assert first.result is not None
    assert again.result is not None
    one, two = first.result.report, again.result.report
    assert one["trials"]["cache_hits"] == 0
    assert two["trials"]["cache_hits"] == 3
    assert all(row["cache_hit"] for row in (*two["history"], *two["cv_results"]))
    assert [row["split_test_scores"] for row in two["cv_results"]] == [
        row["split_test_scores"] for row in one["cv_results"]
    ]
    assert any("scored before" in note for note in two["notes"])
    # What is asked otherwise is computed: a candidate more, another seed, other folds. Fixed or searched is all one.
    fixed = run(field, "s3", **tree | {"params": {"min_samples_leaf": 2}, "space": {"max_depth": [4]}})
    assert (len(fits), fixed.cache_hit) == (4, False)
    turned = run(field, "s4", **tree | {"params": {"max_depth": 4}, "space": {"min_samples_leaf": [2]}})
    assert turned.result is not None
    assert turned.result.report["trials"]["cache_hits"] == 1
    more = run(field, "s5", **tree | {"space": {"max_depth": [3, 5]}})
    assert more.result is not None
    assert [bool(row.get("cache_hit")) for row in more.result.report["history"]] == [True, False]
    for n, change in enumerate(({"seed": 1}, {"cv": 4})):
        fits.clear()
        run(field, f"t{n}", **tree | {"space": {"max_depth": [3]}} | change)
        assert len(fits) >= 3


@pytest.mark.parametrize("more", [{"sampler": "grid", "pruner": "halving"}, {"sampler": "tpe", "trials": 5}])
def test_other_ways(field: Field, iris: tuple[np.ndarray, np.ndarray], more: dict[str, Any]) -> None:
    job = run(field, **more)
    assert job.status == "succeeded", job.error
    assert job.result is not None
    assert job.result.model == "iris-random_forest@1"
    if "pruner" in more:
        rows = [row["rows"] for row in job.result.report["cv_results"]]
        assert rows == sorted(rows)
        assert len(set(rows)) > 1


def test_what_scikit_learn_refuses_fails_at_once(field: Field, iris: tuple[np.ndarray, np.ndarray]) -> None:
    job = run(field, space={"max_dept": [1]}, sampler="grid")
    assert job.status == "failed"
    assert job.error is not None
    assert "max_dept" in job.error["detail"]
    assert field.parts.catalog.trials.of("s1") == {}


def test_where_every_candidate_fails_the_search_does(field: Field, iris: tuple[np.ndarray, np.ndarray]) -> None:
    job = run(field, estimator="knn", space={"n_neighbors": [70, 80]}, sampler="grid")
    assert job.status == "failed", job.result
    assert job.error is not None
    assert job.error["code"] == "all_failed"


def test_a_last_portion_that_begins_first_loses_no_candidate(field: Field, iris: tuple[np.ndarray, np.ndarray]) -> None:
    """The longest fits begin first, and the last portion may hold fewer candidates than the others."""
    trees = [*range(1, 17), 40]
    job = run(field, space={"n_estimators": trees}, sampler="grid", parallel=1, cv=2)
    assert job.result is not None, job.error
    assert [row["params"]["n_estimators"] for row in job.result.report["cv_results"]] == trees
    jobs = field.parts.catalog.trials.of("s1")
    tried = [p["n_estimators"] for trial in jobs.values() for p in trial.spec.get("candidates", ())]
    assert sorted(tried) == trees
    assert min(jobs.values(), key=lambda trial: trial.created_at).spec["candidates"] == [{"n_estimators": 40}]
