"""Searches over estimators of scikit-learn, before and after their trials: grids, portions, tables, halving."""

from math import nan

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.model_selection import ParameterGrid

from app.domain import specs
from app.errors import Unprocessable
from workers.search import estimators, halving


def spec(**fields):
    given = {"kind": "search", "dataset": "d@1", "estimator": "random_forest", "space": {"max_depth": [1]}}
    return specs.SearchSpec.model_validate(given | fields)


def result(*scores, **more):
    return {"params": {"max_depth": 3}, "scores": [None if s != s else s for s in scores]} | more


def test_the_grid_is_in_scikit_learns_order() -> None:
    space = {"n_estimators": [300, 100], "max_depth": [None, 5, 3], "criterion": ["gini", "log_loss"]}
    assert estimators.grid(spec(space=space)) == list(ParameterGrid(space))


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ({"low": 1, "high": 3}, [1, 2, 3]),
        ({"low": 2, "high": 9, "step": 3}, [2, 5, 8]),
        ({"low": 0, "high": 1, "step": 0.25}, [0, 0.25, 0.5, 0.75, 1]),
        ({"low": 0.1, "high": 0.3, "step": 0.1}, pytest.approx([0.1, 0.2, 0.3])),
        ({"low": 1, "high": 3, "type": "float", "step": 1}, [1.0, 2.0, 3.0]),
    ],
)
def test_ranges_with_steps_are_choices(given, values) -> None:
    found = [params["max_depth"] for params in estimators.grid(spec(space={"max_depth": given}))]
    assert found == values
    if given.get("type") != "float" and "step" not in given:
        assert all(type(v) is int for v in found)


@pytest.mark.parametrize(
    "space",
    [
        {"max_depth": {"low": 1, "high": 1000, "log": True}},
        {"max_depth": {"low": 0.5, "high": 1}},
        {"max_depth": {"low": 1, "high": 1e9}},
        {"a": list(range(1000)), "b": list(range(1000))},
    ],
)
def test_grids_without_an_end_are_refused(space) -> None:
    with pytest.raises(Unprocessable):
        estimators.grid(spec(space=space))


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 7, 27, 400])
def test_portions_hold_every_candidate_once_and_keep_all_workers_busy(count, workers) -> None:
    candidates = [{"max_depth": n} for n in range(count)]
    parts = estimators.portions(candidates, workers)
    assert [params for part in parts for params in part] == candidates
    assert len(parts) >= min(count, 8 * workers)
    assert len(parts) <= 16 * workers


def test_the_effort_of_a_portion_grows_with_its_trees() -> None:
    few, many = [{"n_estimators": 100, "max_depth": 30}], [{"n_estimators": 300, "max_depth": 10}]
    assert estimators.effort(few) < estimators.effort(many) < estimators.effort([*few, *many])
    assert estimators.effort([{"C": 1.0}]) == estimators.effort([{"kernel": "rbf"}])


def test_a_trial_carries_all_that_it_depends_on() -> None:
    given = spec(estimator="RandomForestClassifier", params={"criterion": "gini"}, cv=5, seed=9)
    assert estimators.trial_spec(given, {"max_depth": 3}, rows=40, number=2) == {
        "kind": "trial", "role": "estimator", "dataset": "d@1", "number": 2, "seed": 9, "estimator": "random_forest",
        "params": {"criterion": "gini"}, "candidates": [{"max_depth": 3}], "cv": 5, "rows": 40,
    }  # fmt: skip
    assert specs.parse(estimators.winner_spec(given, {"max_depth": 3})).role == "estimator_winner"


@pytest.mark.parametrize("means", [[0.5, nan, 0.7, 0.7, 0.1], [nan, nan], [0.2]])
def test_ranks_are_those_of_scikit_learn(means) -> None:
    ranks = [row["rank_test_score"] for row in estimators.table([result(m, m) for m in means])]
    if all(np.isnan(means)):
        assert ranks == [1, 1]
    else:
        filled = np.where(np.isnan(means), np.nanmin(means) - 1, means)
        assert ranks == rankdata(-filled, method="min").tolist()


def test_of_equal_candidates_the_first_wins_and_it_is_said() -> None:
    found = [result(0.5, 0.7), result(0.9, 0.7), result(0.7, 0.9), result(nan, 0.99, error="ValueError: no")]
    told = estimators.summary(found)
    assert (told["best_index"], told["best_score"]) == (1, 0.8)
    assert any("2 candidates share the best score" in note for note in told["notes"])
    assert any("1 of 4 candidates failed" in note and "ValueError: no" in note for note in told["notes"])


def test_where_every_candidate_failed_the_reason_is_told() -> None:
    with pytest.raises(Unprocessable, match=r"none of the 2 candidates.*the matrix is singular") as refused:
        estimators.summary([result(nan, nan, error="the matrix is singular"), result(nan, 0.5, error="too few")])
    assert refused.value.code == "all_failed"


def test_a_trial_that_failed_tells_why() -> None:
    asked = [{"candidates": [{"max_depth": 1}, {"max_depth": 2}]}, {"candidates": [{"max_depth": 3}]}]
    found = estimators.results([None, {"results": [result(0.5)]}], asked, ["no such folds", None])
    assert [row.get("error") for row in estimators.table(found)] == ["no such folds", "no such folds", None]
    assert estimators.best(found) == 2


def test_only_candidates_of_the_last_round_can_win() -> None:
    found = [result(0.99, rows=20), result(0.6, rows=60), result(0.8, rows=60), result(0.8, rows=60)]
    assert estimators.best(found) == 2


def test_halving_needs_rows() -> None:
    with pytest.raises(Unprocessable, match="begins with 60 rows"):
        halving.rounds(9, 59, 3, 10)
    assert halving.rounds(9, 60, 3, 10) == [halving.Round(9, 60)]
    assert halving.rounds(1, 60, 3, None) == [halving.Round(1, 60)]


def test_survivors_put_failures_last() -> None:
    assert halving.survivors([0.1, None, 0.9, 0.5], 2) == [3, 2]
    assert halving.survivors([None, 0.2, None], 2) == [2, 1] or halving.survivors([None, 0.2, None], 2) == [0, 1]


def test_the_parameters_that_are_known_are_those_of_the_library() -> None:
    import importlib

    from app.domain.estimator_params import PARAMETERS
    from app.domain.estimators import KNOWN

    found = {}
    for known in KNOWN.values():
        for path in filter(None, (known.classifier, known.regressor)):
            module, _, name = path.partition(":")
            found[name] = frozenset(getattr(importlib.import_module(module), name)().get_params(deep=False))
    assert found == PARAMETERS
