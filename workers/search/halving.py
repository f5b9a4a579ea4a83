"""Successive halving over rows: every round gives the better third of the candidates three times as many of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log, nan

from app.errors import Unprocessable

FACTOR = 3


@dataclass(frozen=True)
class Round:
    """How many candidates are tried, on how many rows of the training split."""

    candidates: int
    rows: int


def rounds(candidates: int, rows: int, cv: int, classes: int | None, factor: int = FACTOR) -> list[Round]:
    """The whole plan, as scikit-learn's HalvingGridSearchCV makes it with its defaults: the last round sees as many
    rows as it can (`min_resources="exhaust"`). rows: of the training split. classes: None for a regression.

    Karnin, Koren and Somekh, Almost optimal exploration in multi-armed bandits, ICML 2013. Raises Unprocessable where
    there are too few rows to begin with.
    """
    least = cv * 2 * (classes or 1)
    if least > rows:
        raise Unprocessable(
            f"halving begins with {least} rows (2 for each of {cv} folds"
            + (f" and {classes} classes" if classes else "")
            + f"), and the training split has {rows}",
            code="too_few_rows",
            hint="search without the pruner `halving`, or with fewer folds",
        )
    required = 1 + floor(log(candidates, factor))
    least = max(least, rows // factor ** (required - 1))
    possible = 1 + floor(log(rows // least, factor))
    found = []
    for number in range(min(possible, required)):
        found.append(Round(candidates, min(factor**number * least, rows)))
        candidates = ceil(candidates / factor)
    return found


def survivors(scores: Sequence[float | None], keep: int) -> list[int]:
    """The places of the `keep` candidates that the next round tries, in its order: the best last, as scikit-learn
    orders them. None: the candidate failed."""
    import numpy as np

    means = np.asarray([nan if s is None else s for s in scores], np.float64)
    # The same call as scikit-learn's, so that equal scores fall out alike.
    order = np.roll(np.argsort(means), np.count_nonzero(np.isnan(means)))
    return [int(place) for place in order[-keep:]]
