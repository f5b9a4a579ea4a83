"""What a classifier's numbers mean: labels with scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_NEAR = 1e-3


def top(
    outputs: Mapping[str, npt.NDArray[Any]], labels: Sequence[str], k: int | None
) -> list[list[dict[str, Any]]] | None:
    """The k likeliest labels of each row (5 unless said), from the first output of shape [rows, labels], if any."""
    for array in outputs.values():
        if array.ndim == 2 and array.dtype.kind == "f" and array.shape[1] == len(labels):
            scores = probabilities(array)
            break
    else:
        return None
    k = min(k or 5, len(labels))
    # A stable order: of equal scores the lower class comes first, as in argmax. NaN sorts last.
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    return [
        [{"label": labels[i], "score": s if s == s else None} for i, s in zip(row, values, strict=True)]
        for row, values in zip(order.tolist(), best.tolist(), strict=True)
    ]


def probabilities(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Rows as probabilities. array: [rows, classes], float; a row that is probabilities or their logarithms already is
    taken as such, any other goes through softmax."""
    rows = array.astype(np.float64)
    with np.errstate(all="ignore"):
        exponents = np.exp(rows - rows.max(axis=1, keepdims=True, initial=-np.inf))
        softmax = exponents / exponents.sum(axis=1, keepdims=True)
        logs = np.exp(rows)
        is_plain = (rows >= -_NEAR).all(axis=1) & (rows <= 1 + _NEAR).all(axis=1) & _sums_to_one(rows)
        is_log = (rows <= _NEAR).all(axis=1) & _sums_to_one(logs)
    found: npt.NDArray[np.float64] = np.where(is_plain[:, None], rows, np.where(is_log[:, None], logs, softmax))
    return found


def _sums_to_one(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    near: npt.NDArray[np.bool_] = np.abs(rows.sum(axis=1) - 1) < _NEAR
    return near
