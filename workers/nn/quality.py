"""How right a network is: accuracy with Wilson's interval, r2 with a bootstrap, and paired differences of the two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from app.domain.records import Quality
from app.errors import BadDataset
from workers.nn import tango

if TYPE_CHECKING:  # an estimator of scikit-learn is judged where there is no torch
    import torch

    from workers.nn.data import Rows

Array = npt.NDArray[Any]
# One batch of inputs, in the model's own layout → its first output.
Predict: TypeAlias = "Callable[[torch.Tensor], Array]"
DRAWS = 1000


@dataclass(frozen=True)
class Answers:
    """What a model said to every row of a split, and what was true. outputs: (rows, …); for classes, only `right`."""

    name: Literal["accuracy", "r2"]
    truth: Array
    right: Array | None = None  # bool per row, of a classifier
    values: Array | None = None  # float64 like truth, of a regression

    @property
    def n(self) -> int:
        return len(self.truth)

    def value(self) -> float:
        if self.right is not None:
            return float(self.right.mean())
        assert self.values is not None
        return r2(self.truth, self.values)


def answers(predict: Predict, rows: Rows, batch: int) -> Answers:
    """Asks for every row of a split. Raises BadDataset where the outputs do not fit the truth."""
    truth, given = [], []
    classes = not rows.y.is_floating_point()
    for x, y in rows.batches(batch):
        output = predict(x)
        truth.append(y.numpy())
        given.append(_classes(output, truth[-1]) if classes else _values(output, truth[-1]))
    true, said = np.concatenate(truth), np.concatenate(given)
    if not classes:
        return Answers("r2", true.astype(np.float64), values=said)
    if not np.issubdtype(said.dtype, np.integer):
        # One score per row: above one half where all of them are probabilities, else above 0, the middle of a logit.
        said = said > (0.5 if said.min() >= 0 and said.max() <= 1 else 0.0)
    return Answers("accuracy", true, right=np.asarray(said == true))


def quality(
    found: Answers,
    dataset: str,
    split: Literal["train", "val", "test"] = "test",
    confidence: float = 0.95,
    seed: int = 0,
) -> Quality:
    """The figure and its interval."""
    if found.right is not None:
        n = found.right.size
        low, high = wilson(int(found.right.sum()), n, confidence)
    else:
        assert found.values is not None
        n = found.n
        low, high = _interval(_bootstrap_r2(found.truth, found.values, seed), confidence)
    return Quality(
        name=found.name,
        value=found.value(),
        low=low,
        high=high,
        n=n,
        split=split,
        dataset=dataset,
        confidence=confidence,
    )


def wilson(right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))


def r2(truth: Array, values: Array) -> float:
    """1 - residual ÷ total sum of squares, over all values; 0 where the truth does not vary and is not met."""
    residual = float(((truth - values) ** 2).sum())
    total = float(((truth - truth.mean(axis=0)) ** 2).sum())
    if total == 0:
        return 1.0 if residual == 0 else 0.0
    return 1.0 - residual / total


def paired(model: Answers, baseline: Answers, confidence: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """The difference model - baseline over the same rows, with its interval.

    Accuracy: Tango's score interval for paired proportions (Tango 1998), and McNemar's exact test. r2: a paired
    bootstrap.
    """
    if model.right is not None and baseline.right is not None:
        return _paired_proportions(model.right.ravel(), baseline.right.ravel(), confidence)
    if model.values is None or baseline.values is None:
        raise BadDataset("one of the two classifies and the other does not: they cannot be compared")
    ours = _bootstrap_r2(model.truth, model.values, seed)
    theirs = _bootstrap_r2(baseline.truth, baseline.values, seed)  # the same draws: paired
    low, high = _interval(ours - theirs, confidence)
    return {
        "name": "r2",
        "difference": model.value() - baseline.value(),
        "low": low,
        "high": high,
        "n": model.n,
        "confidence": confidence,
        "method": f"paired bootstrap, {DRAWS} draws",
    }


def _paired_proportions(ours: Array, theirs: Array, confidence: float) -> dict[str, Any]:
    n = ours.size
    won, lost = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    low, high = tango.interval(won, lost, n, confidence)

    return {
        "name": "accuracy",
        "difference": (won - lost) / n,
        "low": low,
        "high": high,
        "n": n,
        "confidence": confidence,
        "only_model_right": won,
        "only_baseline_right": lost,
        "p_value": mcnemar(won, lost),
        "method": "Tango's score interval for paired proportions; McNemar's exact test",
    }


def mcnemar(won: int, lost: int) -> float:
    """Two-sided exact p of as uneven a split of the disagreements, were both equally good."""
    n = won + lost
    if n == 0:
        return 1.0
    if n > 1000:  # the normal approximation with continuity correction, exact to the third digit there
        z = max(0.0, (abs(won - lost) - 1) / sqrt(n))
        return min(1.0, 2 * (1 - NormalDist().cdf(z)))
    tail = sum(comb(n, k) for k in range(min(won, lost) + 1))
    return min(1.0, float(2 * tail / 2**n))


def _classes(output: Array, y: Array) -> Array:
    """The arg-max over axis 1; the output itself where it is one class or one score per row."""
    if output.shape == y.shape:
        return output
    if output.ndim != y.ndim + 1 or output.shape[0] != y.shape[0] or output.shape[2:] != y.shape[1:]:
        raise BadDataset(f"the model's output has the shape {list(output.shape)}; the labels have {list(y.shape)}")
    return np.asarray(output[:, 0] if output.shape[1] == 1 else output.argmax(axis=1))


def _values(output: Array, y: Array) -> Array:
    if output.size != y.size:
        raise BadDataset(f"the model's output has the shape {list(output.shape)}; the targets have {list(y.shape)}")
    return output.astype(np.float64).reshape(y.shape)


def _bootstrap_r2(truth: Array, values: Array, seed: int) -> Array:
    """r2 of rows drawn with replacement. A draw varies less than the whole, by (n - 1) ÷ n on average, which would put
    every draw too low: with few rows the interval would miss the figure itself. The residual is scaled accordingly."""
    rng, n = np.random.default_rng(seed), len(truth)
    draws = (rng.integers(0, n, n) for _ in range(DRAWS))
    found = np.asarray([r2(truth[rows], values[rows]) for rows in draws])
    varied = n > 1 and bool((truth != truth[:1]).any())  # else r2 is 0 or 1 by agreement, in every draw
    return 1.0 - (1.0 - found) * (n - 1) / n if varied else found


def _interval(draws: Array, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(draws, (0.5 - confidence / 2, 0.5 + confidence / 2))
    return float(low), float(high)
