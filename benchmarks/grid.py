"""The grid over a random forest: a search job with one worker and with two, beside scikit-learn's own GridSearchCV.

    python benchmarks/grid.py [--rounds 3]

27 points, 3 folds, scikit-learn's digits. Rounds A B C A B C on the same machine; every mean score must be equal.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from enginesmith import Client

from demo.service import service

SPACE = {"n_estimators": [100, 200, 300], "max_depth": [10, 20, 30], "min_samples_split": [2, 5, 10]}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    arrays = digits()
    ratios: dict[str, list[float]] = {"two workers ÷ GridSearchCV(n_jobs=2)": [], "two workers ÷ one worker": []}
    for _ in range(given.rounds):
        theirs, wanted = scikit(arrays)
        two, found = ours(arrays, 2)
        one, again = ours(arrays, 1)
        for scores in (found, again):
            if scores != wanted:
                print("the mean scores are not those of GridSearchCV", file=sys.stderr)
                return 1
        print(f"GridSearchCV(n_jobs=2) {theirs:.1f} s · two workers {two:.1f} s · one worker {one:.1f} s", flush=True)
        for ratio, value in zip(ratios.values(), (two / theirs, two / one), strict=True):
            ratio.append(value)
    for name, values in ratios.items():
        print(f"{name}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
    return 0


def digits() -> dict[str, Any]:
    """1,797 rows of 64 numbers; 1,149 of them to train with."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, order = x.astype(np.float32), np.random.default_rng(0).permutation(len(x))
    parts = {"": order[:1149], "_val": order[1149:1437], "_test": order[1437:]}
    return {f"{name}{part}": of[rows] for part, rows in parts.items() for name, of in (("x", x), ("y", y))}


def scikit(arrays: dict[str, Any]) -> tuple[float, list[float]]:
    """Seconds, and every mean score."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV

    began = time.perf_counter()
    search = GridSearchCV(RandomForestClassifier(random_state=0), SPACE, cv=3, n_jobs=2)
    search.fit(arrays["x"], arrays["y"])
    return time.perf_counter() - began, search.cv_results_["mean_test_score"].tolist()


def ours(arrays: dict[str, Any], workers: int) -> tuple[float, list[float]]:
    """The whole job over HTTP: every trial, the winner fitted again, tested, written as ONNX and published."""
    with service(workers) as (url, _):
        client = Client(url)
        client.datasets.push("digits", **arrays)
        began = time.perf_counter()
        job = client.jobs.submit(
            "search", dataset="digits", estimator="random_forest", space=SPACE, cv=3, sampler="grid", seed=0, wait=True
        )
        seconds = time.perf_counter() - began
    assert job.result is not None
    return seconds, [row["mean_test_score"] for row in job.result["report"]["cv_results"]]


if __name__ == "__main__":
    sys.exit(main())
