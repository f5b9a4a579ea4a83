"""The estimators of scikit-learn that a search takes, by name. Names alone: the library itself is the workers'."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from app.domain.records import Dataset
from app.errors import Unprocessable

# Where in a spec, and what is wrong there.
Wrong = tuple[list[str | int], str]


@dataclass(frozen=True)
class Known:
    """classifier, regressor: `module:class`, None where there is none. also: other names that people give it."""

    classifier: str | None
    regressor: str | None
    also: tuple[str, ...] = ()
    # Whether the regressor predicts several numbers a row.
    several: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(path.partition(":")[2] for path in (self.classifier, self.regressor) if path)


def _both(module: str, stem: str, *also: str, several: bool = False) -> Known:
    return Known(f"{module}:{stem}Classifier", f"{module}:{stem}Regressor", also, several)


KNOWN: dict[str, Known] = {
    "random_forest": _both("sklearn.ensemble", "RandomForest", "rf", "forest", several=True),
    "extra_trees": _both("sklearn.ensemble", "ExtraTrees", several=True),
    "gradient_boosting": _both("sklearn.ensemble", "GradientBoosting", "gbm", "gbdt"),
    "hist_gradient_boosting": _both("sklearn.ensemble", "HistGradientBoosting", "hgb"),
    "decision_tree": _both("sklearn.tree", "DecisionTree", "tree", several=True),
    "knn": _both("sklearn.neighbors", "KNeighbors", "k_neighbors", "nearest_neighbors", several=True),
    "mlp": _both("sklearn.neural_network", "MLP", "neural_network", several=True),
    "svm": Known("sklearn.svm:SVC", "sklearn.svm:SVR"),
    "logistic_regression": Known("sklearn.linear_model:LogisticRegression", None, ("logreg", "logistic")),
    "ridge": Known("sklearn.linear_model:RidgeClassifier", "sklearn.linear_model:Ridge", (), True),
    "linear_regression": Known(None, "sklearn.linear_model:LinearRegression", ("linear", "ols"), True),
    "lasso": Known(None, "sklearn.linear_model:Lasso", (), True),
    "elastic_net": Known(None, "sklearn.linear_model:ElasticNet", (), True),
}
# What is not the caller's to set, and why.
OURS = {
    "random_state": "`seed` of the search is the estimator's random_state",
    "n_jobs": "a worker uses the threads that it has",
    "verbose": "nobody reads what it would print; the search's events tell how it goes",
}


def named(said: str) -> str:
    """The name in KNOWN that is meant: `svc`, `RandomForestClassifier`, `Random Forest` are understood. Raises
    Unprocessable that lists those that are known."""
    found = _names().get(_plain(said))
    if found is None:
        close = difflib.get_close_matches(_plain(said), _names(), 1, 0.75)
        raise Unprocessable(
            f"there is no estimator {said[:80]!r} here" + (f": is {_names()[close[0]]!r} meant?" if close else ""),
            code="unknown_estimator",
            hint=f"estimators are: {', '.join(KNOWN)}",
            errors=[{"loc": ["estimator"], "msg": f"must be one of {', '.join(KNOWN)}"}],
        )
    return found


def class_path(said: str, dataset: Dataset) -> str:
    """`module:class` of the estimator for what a data set asks: a class, or numbers. Raises Unprocessable."""
    name = named(said)
    known = KNOWN[name]
    task = "classifier" if dataset.y_dtype == "int64" else "regressor"
    path: str | None = getattr(known, task)
    other = known.regressor if task == "classifier" else known.classifier
    meant_other = other is not None and _plain(said) == _plain(other.partition(":")[2]) != _plain(name)
    if path is None or meant_other:
        able = [n for n, k in KNOWN.items() if getattr(k, task)]
        raise Unprocessable(
            f"{said!r} is no {task}, and {dataset.ref} asks for {'classes' if task == 'classifier' else 'numbers'}",
            code="wrong_task",
            hint=f"{task}s are: {', '.join(able)}",
            errors=[{"loc": ["estimator"], "msg": f"is no {task}"}],
        )
    width = dataset.y_shape
    if width and (task == "classifier" or len(width) > 1 or (width != (1,) and not known.several)):
        able = [n for n, k in KNOWN.items() if k.several] if task == "regressor" and len(width) == 1 else []
        raise Unprocessable(
            f"y of {dataset.ref} has the shape {list(width)} a row, and {name} predicts one "
            f"{'class' if task == 'classifier' else 'number'} a row",
            code="dataset_mismatch",
            hint=f"several numbers a row are predicted by: {', '.join(able)}" if able else "give y one value a row",
            errors=[{"loc": ["dataset"], "msg": "does not fit the estimator"}],
        )
    return path


def check_names(path: str, known: Iterable[str], fixed: Collection[str], space: Collection[str]) -> None:
    """Whether an estimator, `module:class`, has the parameters that `params` and `space` name, and each but once.
    known: those that it has. Raises Unprocessable that names every one that is wrong."""
    owner, known = path.partition(":")[2], sorted(known)
    wrong: list[Wrong] = []
    for part, names in (("params", fixed), ("space", space)):
        for name in names:
            if name in OURS and name in (*known, "n_jobs"):
                wrong.append(([part, name], f"`{name}` is not to be set: {OURS[name]}"))
            elif name not in known:
                close = difflib.get_close_matches(name, known, 1, 0.7)
                meant = f": is {close[0]!r} meant?" if close else ""
                wrong.append(([part, name], f"{owner} has no parameter {name!r}{meant}"))
    wrong += [(["space", n], f"`{n}` is both in `space` and in `params`") for n in space if n in fixed]
    if wrong:
        told = ", ".join(name for name in known if name not in OURS)
        raise refused(wrong, f"{owner} has: {told}", "unknown_parameter")


def refused(wrong: Sequence[Wrong], hint: str, code: str) -> Unprocessable:
    """One error for all that is wrong, each with its place."""
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    errors = [{"loc": loc, "msg": text} for loc, text in wrong[:50]]
    return Unprocessable(f"{wrong[0][1]}{more}", code=code, hint=hint, errors=errors)


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _names() -> dict[str, str]:
    told: dict[str, str] = {}
    for name, known in KNOWN.items():
        told |= {_plain(other): name for other in (name, *known.also, *known.classes)}
    return told
