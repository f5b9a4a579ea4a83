"""The names under which scikit-learn's estimators are known."""

import importlib

import pytest

from app.domain.estimators import KNOWN, named
from app.errors import Unprocessable


@pytest.mark.parametrize("name", KNOWN)
def test_every_name_is_a_class_of_scikit_learn(name) -> None:
    for path in (KNOWN[name].classifier, KNOWN[name].regressor):
        if path is not None:
            module, _, cls = path.partition(":")
            assert hasattr(importlib.import_module(module), cls)
            assert named(cls) == name


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("svc", "svm"),
        ("SVR", "svm"),
        ("Random Forest", "random_forest"),
        ("rf", "random_forest"),
        ("k-neighbors", "knn"),
    ],
)
def test_other_names_are_understood(said, meant) -> None:
    assert named(said) == meant


@pytest.mark.parametrize("said", ["", "xgboost", "__class__", "random_forest; import os"])
def test_others_are_refused_and_the_known_ones_listed(said) -> None:
    with pytest.raises(Unprocessable) as refused:
        named(said)
    assert "random_forest" in refused.value.hint
    assert refused.value.errors[0]["loc"] == ["estimator"]
