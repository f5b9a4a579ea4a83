"""What is to be predicted: classes as int64 from 0, or float32 numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from app.errors import BadDataset
from app.intake.npy import check_finite

_MOST_LABELS = 10_000
_LONGEST_LABEL = 1_000


def as_targets(values: npt.NDArray[Any], task: Literal["classification", "regression"] | None, name: str) -> Any:
    """y as int64 [n] for classes or float32 [n, …] for numbers. By dtype unless `task` decides. Raises BadDataset."""
    kind = values.dtype.kind
    check_finite(values, 0, name)
    if kind == "f" and task != "classification":
        with np.errstate(over="ignore"):
            numbers = values.astype(np.float32)
        check_finite(numbers, 0, f"{name} as float32")
        return numbers
    if kind in "biu" and task == "regression":
        return values.astype(np.float32)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise BadDataset(
            f"{name} has shape {list(values.shape)}; classes are one number a row",
            hint="give class numbers, not one-hot rows: y.argmax(1); or float targets for regression",
        )
    if kind == "f" and not (values == np.floor(values)).all():
        raise BadDataset(f"{name} is not whole numbers, so it cannot be classes", hint="task 'regression'?")
    if len(values) and kind in "iuf":
        low, high = values.min(), values.max()
        if low < 0 or high > 2**31 - 1:
            row = int(np.argmax(values < 0 if low < 0 else values > 2**31 - 1))
            raise _out_of_range(name, row, values[row], "0 or more")
    return values.astype(np.int64)


def count_classes(
    targets: Mapping[str, npt.NDArray[Any]], labels: Sequence[str] | None, classes: int | None
) -> int | None:
    """How many classes there are; None for numbers. Raises BadDataset for one that no label names."""
    found = {y.dtype.kind for y in targets.values()}
    if found == {"f"}:
        if labels is not None or classes is not None:
            raise BadDataset("y is floats, so it has no classes", hint="give y as integers, or leave out `labels`")
        return None
    if len(found) != 1:
        raise BadDataset("y is integers in one split and floats in another", hint="use one dtype")
    most = len(labels) if labels is not None else classes
    if most is None:
        return max((int(y.max()) for y in targets.values() if len(y)), default=-1) + 1
    for name, y in targets.items():
        if len(y) and y.max() >= most:
            row = int(np.argmax(y >= most))
            raise _out_of_range(name, row, y[row], f"0 to {most - 1}, as there are {most} classes")
    return most


def number_labels(values: Sequence[str], labels: Sequence[str] | None, name: str) -> dict[str, int]:
    """Label → class number; sorted unless `labels` gives the order. Raises BadDataset."""
    if labels is not None:
        if unknown := sorted(set(values) - set(labels)):
            raise BadDataset(
                f"{name} has {unknown[0]!r}, which is not among the {len(labels)} labels",
                code="labels_out_of_range",
                hint="add it to `labels`",
            )
        return {label: i for i, label in enumerate(labels)}
    if len(values) > _MOST_LABELS:
        raise BadDataset(
            f"{name} has more than {_MOST_LABELS} different texts", hint="is that the right column? Classes are few"
        )
    if (longest := max(map(len, values), default=0)) > _LONGEST_LABEL:
        raise BadDataset(
            f"{name} has a text of {longest} characters; names of classes have {_LONGEST_LABEL} at most",
            hint="is that the right column?",
        )
    if all(v.isdecimal() and len(v) < 10 for v in values):
        return {label: i for i, label in enumerate(sorted(values, key=lambda v: (int(v), v)))}
    return {label: i for i, label in enumerate(sorted(values))}


def _out_of_range(name: str, row: int, value: Any, wanted: str) -> BadDataset:
    return BadDataset(
        f"{name} has class {int(value)} in row {row}; classes are {wanted}",
        code="labels_out_of_range",
        hint="number the classes from 0",
    )
