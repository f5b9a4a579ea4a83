"""What a classifier's numbers mean: labels with scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.tensors import all_finite

_NEAR = 1e-3
_FEW = 64  # numbers that Python is quicker with than numpy


def top(
    outputs: Mapping[str, npt.NDArray[Any]], labels: Sequence[str], k: int | None
) -> list[list[dict[str, Any]]] | None:
    """The k likeliest labels of each row (5 unless said), from the first output of shape [rows, labels], if any."""
    for array in outputs.values():
        if array.ndim == 2 and array.dtype.kind == "f" and array.shape[1] == len(labels):
            break
    else:
        return None
    k = min(k or 5, len(labels))
    if array.size <= _FEW and all_finite(array):
        told = []
        for row in array.tolist():
            scores = _of_row(row)
            # Sorted stably, as below.
            places = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:k]
            told.append([{"label": labels[i], "score": scores[i]} for i in places])
        return told
    likely = probabilities(array)
    order = best(likely, k)
    chosen = likely[np.arange(len(likely))[:, None], order]
    return [
        [{"label": labels[i], "score": s if s == s else None} for i, s in zip(row, values, strict=True)]
        for row, values in zip(order.tolist(), chosen.tolist(), strict=True)
    ]


def _of_row(row: list[float]) -> list[float]:
    """`probabilities` of one short row of finite numbers, where an array costs more than what is done with it."""
    highest = max(row)
    if highest <= 1 + _NEAR and min(row) >= -_NEAR and abs(sum(row) - 1) < _NEAR:
        return row
    if highest <= _NEAR:
        logs = [math.exp(v) for v in row]
        if abs(sum(logs) - 1) < _NEAR:
            return logs
    exponents = [math.exp(v - highest) for v in row]
    total = sum(exponents)
    return [e / total for e in exponents]


def best(scores: npt.NDArray[np.float64], k: int) -> npt.NDArray[np.intp]:
    """The places of the k highest scores of each row, the highest first; of equal ones the lower class comes first, as
    in argmax. NaN sorts last."""
    negated = -scores
    rows, classes = scores.shape
    if classes <= _FEW or k * 4 > classes or np.isnan(negated).any():
        return np.argsort(negated, axis=1, kind="stable")[:, :k]
    # Sorting a thousand classes takes ten times as long as finding the few that can be among the best.
    bounds = np.partition(negated, k - 1, axis=1)[:, k - 1]
    found = np.empty((rows, k), np.intp)
    for row in range(rows):
        places = np.flatnonzero(negated[row] <= bounds[row])
        found[row] = places[np.argsort(negated[row, places], kind="stable")[:k]]
    return found


def probabilities(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Rows as probabilities. array: [rows, classes], float; a row that is probabilities or their logarithms already is
    taken as such, any other goes through softmax."""
    rows = array.astype(np.float64)
    with np.errstate(all="ignore"):
        highest = rows.max(axis=1, keepdims=True, initial=-np.inf)
        exponents = np.exp(rows - highest)
        exponents /= exponents.sum(axis=1, keepdims=True)
        lowest = rows.min(axis=1, keepdims=True, initial=np.inf)
        near_plain = (lowest >= -_NEAR) & (highest <= 1 + _NEAR)
        near_log = highest <= _NEAR
        if near_plain.any():
            near_plain &= _sums_to_one(rows)
        if near_log.any():
            logs = np.exp(rows)
            near_log &= ~near_plain & _sums_to_one(logs)
            exponents = np.where(near_log, logs, exponents)
    return np.where(near_plain, rows, exponents)


def _sums_to_one(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    near: npt.NDArray[np.bool_] = np.abs(rows.sum(axis=1, keepdims=True) - 1) < _NEAR
    return near
