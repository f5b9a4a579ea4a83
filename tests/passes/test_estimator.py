"""The roles of a search over scikit-learn's estimators: equal to GridSearchCV, written as ONNX, refused where wrong."""

import importlib
import subprocess
import sys
import warnings
from math import isnan

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV

from app import runtimes
from app.domain import specs
from app.domain.estimators import KNOWN
from app.domain.records import Made
from app.errors import Unprocessable
from app.runtimes import LoadOptions
from workers.search import estimators, halving
from workers.trials import kept

SPACES = {
    "random_forest": {"n_estimators": [5, 8], "max_depth": [3, None]},
    "extra_trees": {"n_estimators": [5], "max_features": ["sqrt", 0.5]},
    "gradient_boosting": {"n_estimators": [3], "max_depth": [2, 3]},
    "hist_gradient_boosting": {"max_iter": [3, 5]},
    "decision_tree": {"max_depth": [3, 8], "ccp_alpha": [0.0, 0.01]},
    "knn": {"n_neighbors": [4, 5], "weights": ["distance"]},
    "mlp": {"hidden_layer_sizes": [[8], [8, 4]], "max_iter": [5]},
    "svm": {"C": [0.1, 10], "kernel": ["linear", "rbf"]},
    "logistic_regression": {"C": [0.01, 1.0]},
    "ridge": {"alpha": [0.1, 10]},
    "linear_regression": {"fit_intercept": [True, False]},
    "lasso": {"alpha": [0.01, 1]},
    "elastic_net": {"alpha": [0.01], "l1_ratio": [0.2, 0.8]},
}


def digits(rows=260):
    x, y = load_digits(return_X_y=True)
    return (x[:rows] / 16).astype(np.float32), y[:rows].astype(np.int64)


def three_splits(x, y, train=160, val=40):
    return {
        "train": (x[:train], y[:train]),
        "val": (x[train : train + val], y[train : train + val]),
        "test": (x[train + val :], y[train + val :]),
    }


@pytest.fixture
def classes(bench):
    x, y = digits()
    bench.dataset("digits", **three_splits(x, y))
    return bench


@pytest.fixture
def pictures(bench):
    """The same as pictures of one channel, whose values are whole numbers."""
    x, y = digits()
    bench.dataset("digits", **three_splits((x * 16).astype(np.uint8).reshape(-1, 1, 8, 8), y))
    return bench


@pytest.fixture
def amounts(bench):
    x, y = load_diabetes(return_X_y=True)
    bench.dataset("amounts", **three_splits(x.astype(np.float32), (y / 100).astype(np.float32), 200, 100))
    return bench


def search_spec(**fields):
    spec = {"kind": "search", "dataset": "digits@1", "sampler": "grid"} | fields
    return specs.SearchSpec.model_validate(spec)


def tried(bench, spec, candidates=None, **more):
    """What the trials of a search find, one portion after the other."""
    parts = estimators.portions(candidates or estimators.grid(spec), 1)
    asked = [estimators.trial_spec(spec, part, number=n, **more) for n, part in enumerate(parts)]
    return estimators.results([bench.apply(**trial).report for trial in asked], asked)


def won(bench, spec, params, name="best"):
    """The winner, published, and what its trial reports."""
    report = bench.apply(**estimators.winner_spec(spec, params)).report
    made = Made(job="search1", spec={})
    version = kept.publish(bench.artifacts, bench.catalog, report["kept"], name=name, parent=None, made_by=made)
    return version, report


def reference(bench, spec, cls=GridSearchCV, ref="digits", **more):
    """scikit-learn's own search over the same rows."""
    record = bench.catalog.dataset(ref, 1)
    known = KNOWN[spec.estimator]
    path = known.classifier if record.y_dtype == "int64" else known.regressor
    module, _, name = path.partition(":")
    estimator = getattr(importlib.import_module(module), name)(**spec.params)
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=spec.seed)
    x, y = (np.load(bench.folder / f"data-{ref}" / f"{a}_train.npy") for a in "xy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cls(estimator, spec.space, cv=spec.cv, **more).fit(x.reshape(len(x), -1), y)


def assert_equal(found, theirs):
    """Every figure, to the last digit."""
    told = estimators.summary(found)
    rows, columns = told["cv_results"], theirs.cv_results_
    assert [row["params"] for row in rows] == columns["params"]
    for name in ("mean_test_score", "std_test_score", "rank_test_score"):
        ours = [float("nan") if row[name] is None else row[name] for row in rows]
        np.testing.assert_array_equal(ours, columns[name], name)
    for fold in range(theirs.n_splits_):
        splits = [row["split_test_scores"][fold] for row in rows]
        np.testing.assert_array_equal(
            [float("nan") if s is None else s for s in splits], columns[f"split{fold}_test_score"]
        )
    assert told["best_index"] == theirs.best_index_
    assert told["best_params"] == theirs.best_params_
    assert told["best_score"] == theirs.best_score_


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if known.classifier])
def test_a_classifiers_grid_equals_that_of_scikit_learn_and_its_winner_answers_alike(classes, name) -> None:
    spec = search_spec(estimator=name, space=SPACES[name], seed=3)
    estimators.check(spec, classes.catalog.dataset("digits", 1))
    found = tried(classes, spec)
    theirs = reference(classes, spec)
    assert_equal(found, theirs)
    version, report = won(classes, spec, estimators.summary(found)["best_params"])
    assert version.format == "onnx"
    assert version.parameters > 0
    assert set(version.files) == {"model.onnx"}
    assert [t.name for t in version.signature.outputs][1] == "label"
    x = np.load(classes.folder / "data-digits" / "x_test.npy")
    y = np.load(classes.folder / "data-digits" / "y_test.npy")
    assert report["estimator_test_score"] == theirs.score(x, y)
    assert (version.metrics.quality.name, version.metrics.quality.n) == ("accuracy", len(y))
    assert version.metrics.quality.low < version.metrics.quality.value <= version.metrics.quality.high
    assert version.metrics.parity.agreed == 1
    answers = served(classes, version, x)
    np.testing.assert_array_equal(answers["label"], theirs.predict(x))
    scores = answers[version.signature.outputs[0].name]
    np.testing.assert_array_equal(scores.argmax(1), theirs.predict(x))
    if hasattr(theirs, "predict_proba"):
        np.testing.assert_allclose(scores, theirs.predict_proba(x), atol=1e-5)
    assert (answers["label"] == y).mean() == version.metrics.quality.value


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if known.regressor])
def test_a_regressors_grid_equals_that_of_scikit_learn_and_its_winner_answers_alike(amounts, name) -> None:
    spec = search_spec(estimator=name, space=SPACES[name], dataset="amounts@1", seed=1)
    estimators.check(spec, amounts.catalog.dataset("amounts", 1))
    found = tried(amounts, spec)
    theirs = reference(amounts, spec, ref="amounts")
    assert_equal(found, theirs)
    version, _ = won(amounts, spec, estimators.summary(found)["best_params"])
    assert (version.metrics.quality.name, version.task) == ("r2", "regression")
    x = np.load(amounts.folder / "data-amounts" / "x_test.npy")
    np.testing.assert_allclose(served(amounts, version, x)["prediction"][:, 0], theirs.predict(x), atol=1e-4)


def served(bench, version, x):
    """What ONNX Runtime answers to rows."""
    folder = bench.folder / f"served-{version.ref}"
    for path in version.files:
        bench.artifacts.fetch(f"{version.folder}/{path}", folder / path)
    options = LoadOptions(threads=1, instances=1, precision="fp32", max_batch=len(x))
    engine = runtimes.get("onnxruntime").load(folder, version.signature, options)
    try:
        return engine.infer({"x": np.ascontiguousarray(x)})
    finally:
        engine.close()


def test_pictures_of_whole_numbers_are_taken_as_they_lie(pictures) -> None:
    spec = search_spec(estimator="random_forest", space={"n_estimators": [6]}, params={"max_depth": 6})
    found = tried(pictures, spec)
    assert_equal(found, reference(pictures, spec))
    version, report = won(pictures, spec, found[0]["params"])
    assert (version.signature.inputs[0].dtype, version.signature.inputs[0].shape) == ("uint8", (-1, 1, 8, 8))
    assert version.signature.batched
    assert any("flattened" in note for note in report["notes"])
    assert report["details"]["trees"] == 6
    x = np.load(pictures.folder / "data-digits" / "x_test.npy")
    engine, _ = pictures.run(kind="convert", model=version.ref, dataset="digits@1", target="onnxruntime")
    assert engine.metrics.quality.value == version.metrics.quality.value
    theirs = reference(pictures, spec)
    np.testing.assert_array_equal(served(pictures, engine, x)["label"], theirs.predict(x.reshape(len(x), -1)))


def test_rows_of_float64_are_searched_as_they_are_and_served_as_float32(bench) -> None:
    x, y = digits()
    bench.dataset("digits", **three_splits(x.astype(np.float64) / 3, y))
    spec = search_spec(estimator="mlp", space={"hidden_layer_sizes": [[8]], "max_iter": [20, 30]})
    found = tried(bench, spec)
    assert_equal(found, reference(bench, spec))
    assert "ConvergenceWarning" in found[0]["warnings"][0]
    version, _ = won(bench, spec, found[0]["params"])
    assert version.signature.inputs[0].dtype == "float32"
    engine, _ = bench.run(kind="convert", model=version.ref, dataset="digits@1", target="onnxruntime", max_batch=8)
    assert engine.metrics.quality.value == version.metrics.quality.value


def test_a_class_that_no_training_row_has_keeps_its_place(bench) -> None:
    x, y = digits()
    y = np.where(y == 4, 5, y)
    y[-1] = 9  # the data set has ten classes
    bench.dataset("digits", **three_splits(x, y))
    for name, scores in (("decision_tree", "probabilities"), ("svm", "scores")):
        spec = search_spec(estimator=name, space={next(iter(SPACES[name])): [3]})
        version, _ = won(bench, spec, tried(bench, spec)[0]["params"], name.replace("_", "-"))
        answers = served(bench, version, x)
        assert answers[scores].shape == (len(x), 10)
        assert not (answers[scores].argmax(1) == 4).any()
        np.testing.assert_array_equal(answers[scores].argmax(1), answers["label"])


def test_halving_goes_through_the_rounds_of_scikit_learn(classes) -> None:
    space = {"max_depth": [1, 2, 3, 5, 9], "min_samples_split": [2, 9]}
    spec = search_spec(estimator="decision_tree", space=space, pruner="halving", seed=5, cv=2)
    record = classes.catalog.dataset("digits", 1)
    estimators.check(spec, record)
    theirs = reference(classes, spec, HalvingGridSearchCV, random_state=5)
    candidates, every = estimators.grid(spec), []
    plan = halving.rounds(len(candidates), record.splits["train"].rows, spec.cv, record.classes)
    assert [r.rows for r in plan] == theirs.n_resources_
    assert [r.candidates for r in plan] == theirs.n_candidates_
    assert len(plan) > 1
    for number, step in enumerate(plan):
        found = tried(classes, spec, candidates, rows=step.rows)
        every += found
        if number + 1 < len(plan):
            scores = [row["mean_test_score"] for row in estimators.table(found)]
            candidates = [candidates[n] for n in halving.survivors(scores, plan[number + 1].candidates)]
    assert [result["params"] for result in every] == theirs.cv_results_["params"]
    means = [row["mean_test_score"] for row in estimators.table(every)]
    np.testing.assert_array_equal(means, theirs.cv_results_["mean_test_score"])
    assert estimators.best(every) == theirs.best_index_


def test_a_fit_that_fails_is_ranked_last_and_said(classes) -> None:
    # The solver knows no such penalty, which only fitting shows.
    spec = search_spec(estimator="logistic_regression", space={"l1_ratio": [0.5, 0.0]}, params={"solver": "lbfgs"})
    found = tried(classes, spec)
    assert_equal(found, reference(classes, spec))
    told = estimators.summary(found)
    assert [row["rank_test_score"] for row in told["cv_results"]] == [2, 1]
    assert told["cv_results"][0]["mean_test_score"] is None
    assert any("1 of 2 candidates failed" in note and "elasticnet" in note for note in told["notes"])
    with pytest.raises(Unprocessable, match="none of the 1 candidates could be fitted"):
        estimators.summary(found[:1])


def test_trials_that_were_lost_count_as_failed(classes) -> None:
    spec = search_spec(estimator="decision_tree", space={"max_depth": [2, 3]})
    asked = [estimators.trial_spec(spec, params) for params in estimators.grid(spec)]
    found = estimators.results([None, classes.apply(**asked[1]).report], asked)
    assert estimators.best(found) == 1
    assert estimators.table(found)[0]["error"] == "the trial was lost"


def test_the_winner_is_fitted_once(classes) -> None:
    spec = search_spec(estimator="decision_tree", space={"max_depth": [2]})
    first = classes.apply(**estimators.winner_spec(spec, {"max_depth": 2})).report
    again = classes.apply(**estimators.winner_spec(spec, {"max_depth": 2})).report
    assert (first["cache_hit"], again["cache_hit"]) == (False, True)
    assert again["kept"] == first["kept"]
    assert again["values"] == first["values"]


def test_openvino_refuses_a_forest_and_names_the_operator(classes) -> None:
    spec = search_spec(estimator="random_forest", space={"n_estimators": [3]})
    version, _ = won(classes, spec, {"n_estimators": 3})
    with pytest.raises(Unprocessable, match="TreeEnsembleClassifier") as refused:
        classes.run(kind="convert", model=version.ref, dataset="digits@1", target="openvino")
    assert refused.value.code == "unsupported_operator"


def test_the_roles_import_no_torch() -> None:
    code = "import sys, workers.trials.estimator, workers.trials.estimator_winner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("fields", "code", "told"),
    [
        ({"estimator": "forest_of_magic"}, "unknown_estimator", "there is no estimator 'forest_of_magic'"),
        ({"estimator": "random_forst"}, "unknown_estimator", "is 'random_forest' meant"),
        ({"estimator": "linear_regression"}, "wrong_task", "no classifier"),
        ({"estimator": "RandomForestRegressor"}, "wrong_task", "no classifier"),
        ({"space": {"max_dept": [3]}}, "unknown_parameter", "no parameter 'max_dept': is 'max_depth' meant"),
        ({"params": {"leaves": 3}}, "unknown_parameter", "no parameter 'leaves'"),
        ({"space": {"max_depth": [3, -1]}}, "bad_parameter", "'max_depth' parameter.*Got -1"),
        ({"space": {"max_depth": ["deep"]}}, "bad_parameter", "Got 'deep'"),
        ({"space": {"max_depth": {"low": 0, "high": 5}}}, "bad_parameter", "Got 0"),
        ({"space": {"random_state": [1, 2]}}, "unknown_parameter", "`seed`"),
        ({"params": {"n_jobs": 2}}, "unknown_parameter", "threads"),
        ({"params": {"max_depth": 3}}, "unknown_parameter", "both in `space` and in `params`"),
        ({"cv": 50, "dataset": "few@1"}, "too_few_rows", "20 rows"),
        ({"space": {"min_impurity_decrease": {"low": 0, "high": 0.5}}}, "bad_space", "range has no steps"),
        (
            {"estimator": "knn", "space": {"metric": ["euclidean", "canberra"]}},
            "not_convertible",
            "canberra.* cannot be written as ONNX",
        ),
        ({"pruner": "halving", "space": {"max_depth": [2, 3, 4]}, "dataset": "few@1"}, "too_few_rows", "halving"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_fitted(classes, fields, code, told) -> None:
    x, y = digits(60)
    classes.dataset("few", train=(x[:20], y[:20]), val=(x[20:30], y[20:30]), test=(x[30:], y[30:]))
    given = {"estimator": "random_forest", "space": {"max_depth": [3, 5]}} | fields
    spec = search_spec(**given)
    with pytest.raises(Unprocessable, match=told) as refused:
        estimators.check(spec, classes.catalog.dataset(spec.dataset.partition("@")[0], 1))
    assert refused.value.code == code


def test_folds_that_cannot_be_cut_are_told(bench) -> None:
    x, _ = digits(40)
    y = np.arange(40) // 2
    bench.dataset("digits", train=(x[:20], y[:20]), val=(x[20:], y[20:]), test=(x[20:], y[20:]))
    spec = search_spec(estimator="decision_tree", space={"max_depth": [2]}, cv=3)
    with pytest.raises(Unprocessable, match="cannot be cut into 3 folds"):
        tried(bench, spec)


def test_several_numbers_a_row(bench) -> None:
    x, y = load_diabetes(return_X_y=True)
    both = np.stack([y / 100, 3 - y / 50], 1).astype(np.float32)
    bench.dataset("amounts", **three_splits(x.astype(np.float32), both, 200, 100))
    for name in ("random_forest", "knn", "mlp", "ridge"):
        space = SPACES[name]
        spec = search_spec(estimator=name, space=space, dataset="amounts@1")
        estimators.check(spec, bench.catalog.dataset("amounts", 1))
        found = tried(bench, spec)
        assert_equal(found, reference(bench, spec, ref="amounts"))
        version, _ = won(bench, spec, found[0]["params"], name.replace("_", "-"))
        assert version.signature.outputs[0].shape == (-1, 2)
    spec = search_spec(estimator="svm", space={"C": [1]}, dataset="amounts@1")
    with pytest.raises(Unprocessable, match="predicts one number a row"):
        estimators.check(spec, bench.catalog.dataset("amounts", 1))


def test_figures_show_every_parameter_that_was_searched(classes) -> None:
    spec = search_spec(estimator="decision_tree", space={"max_depth": [2, 4], "criterion": ["gini", "entropy"]})
    drawn = {figure["title"]: figure for figure in estimators.figures(spec, tried(classes, spec))}
    assert drawn["Score by max_depth"]["series"][1]["x"] == [2, 4]
    assert drawn["Score by criterion"]["series"][0]["labels"] == ["gini", "entropy"]
    assert not any(isnan(v) for f in drawn.values() for s in f["series"] for v in s["y"])


@pytest.mark.slow
def test_the_grid_of_the_article_equals_that_of_scikit_learn(bench) -> None:
    x, y = digits(1797)
    bench.dataset("digits", **three_splits(x, y, 1150, 287))
    space = {"n_estimators": [100, 200, 300], "max_depth": [10, 20, 30], "min_samples_split": [2, 5, 10]}
    spec = search_spec(estimator="random_forest", space=space, cv=3)
    found = tried(bench, spec)
    assert len(found) == 27
    assert_equal(found, reference(bench, spec, n_jobs=2))
