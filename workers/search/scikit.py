"""scikit-learn's estimators: made from what a spec says, refused where the library itself would refuse them."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from app.domain.estimators import KNOWN, Wrong, check_names, class_path, named, refused
from app.domain.records import Dataset
from app.errors import Problem, Unprocessable

# Values tried per parameter by a conversion; numbers change nothing about how an estimator is written down.
_TRIED = 20
# What makes a fit long and changes nothing else.
_SHORT = {"n_estimators": 2, "max_iter": 5}


def make(path: str, params: Mapping[str, Any], seed: int) -> Any:
    """A new estimator of `module:class`, its random_state the seed. Raises TypeError for parameters it has not."""
    module, _, name = path.partition(":")
    estimator = getattr(importlib.import_module(module), name)(**{k: _value(k, v) for k, v in params.items()})
    if "random_state" in estimator.get_params(deep=False):
        estimator.set_params(random_state=seed)
    return estimator


def check(said: str, dataset: Dataset | None, fixed: Mapping[str, Any], space: Mapping[str, list[Any]]) -> None:
    """Whether the estimator has these parameters, takes these values one by one (by scikit-learn's own validation),
    and can be written as ONNX with them. Raises Unprocessable that names every one that is wrong."""
    paths = [class_path(said, dataset)] if dataset is not None else _paths(named(said))
    problem: Problem | None = None
    for path in paths:  # without data either task may be meant: one that takes it is enough
        try:
            return _check(path, fixed, space)
        except Unprocessable as refused:
            problem = problem or refused
    assert problem is not None
    raise problem


def _paths(name: str) -> list[str]:
    return [path for path in (KNOWN[name].classifier, KNOWN[name].regressor) if path]


def _check(path: str, fixed: Mapping[str, Any], space: Mapping[str, list[Any]]) -> None:
    check_names(path, make(path, {}, 0).get_params(deep=False), fixed, space)
    tried: list[tuple[list[str | int], str, Any]] = [(["params", name], name, value) for name, value in fixed.items()]
    tried += [(["space", name, n], name, value) for name, values in space.items() for n, value in enumerate(values)]
    wrong: list[Wrong] = [(list(loc), text) for loc, name, value in tried if (text := _invalid(path, name, value))]
    if wrong:
        raise refused(wrong, "scikit-learn's own documentation says what each parameter takes", "bad_parameter")
    wrong = [(list(loc), text) for loc, text in _unwritable(path, fixed, space)]
    if wrong:
        raise refused(wrong, "leave it out: the winner is to be served as an ONNX model", "not_convertible")


def _invalid(path: str, name: str, value: Any) -> str | None:
    """What scikit-learn's validation says about one value, before any fit."""
    try:
        make(path, {name: value}, 0)._validate_params()
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def _unwritable(path: str, fixed: Mapping[str, Any], space: Mapping[str, list[Any]]) -> list[tuple[list[Any], str]]:
    """Values with which the estimator cannot be written as ONNX, found out on a few rows of noise. Only what is no
    number can make a difference."""
    wrong: list[tuple[list[Any], str]] = []
    words = [(name, n, v) for name, values in space.items() for n, v in enumerate(values[:_TRIED]) if _is_word(v)]
    words += [("", -1, None)] if any(map(_is_word, fixed.values())) else []
    for name, place, value in words:
        if text := _not_written(path, {**fixed, **({name: value} if name else {})}):
            wrong.append((["space", name, place] if name else ["params"], text))
    return wrong


def _is_word(value: Any) -> bool:
    return isinstance(value, (str, bool, list, dict))


def _not_written(path: str, params: Mapping[str, Any]) -> str | None:
    from sklearn.base import is_classifier

    from workers.search.onnx_parity import APART, ask, compare
    from workers.search.skl_onnx import write

    rng = np.random.default_rng(0)
    x, y = rng.random((30, 3), np.float32), np.arange(30) % 3
    estimator = make(path, params, 0)
    classifies, has = is_classifier(estimator), estimator.get_params(deep=False)
    estimator.set_params(**{name: value for name, value in _SHORT.items() if name in has and name not in params})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            estimator.fit(x, y if classifies else y + x[:, 0])
        except Exception:  # noise of three columns is not the data: the real fits tell
            return None
        told = f"{type(estimator).__name__} with {', '.join(f'{k}={v!r}' for k, v in params.items())}"
        try:
            model, signature = write(estimator, (3,), "float32", 3 if classifies else None)
            found = compare(estimator, signature, x, ask(model, signature, x, 1))
        except Exception as error:  # its errors, and those of ONNX Runtime, have no common class
            return f"{told} cannot be written as ONNX: {' '.join(str(error).split())[:300]}"
    return None if found.apart <= APART else f"{told} cannot be written as ONNX: the graph answers otherwise"


def _value(name: str, value: Any) -> Any:
    """JSON has no keys but text: classes that weights are given for are numbers."""
    if name == "class_weight" and isinstance(value, Mapping):
        return {int(k) if str(k).lstrip("-").isdigit() else k: v for k, v in value.items()}
    return value
