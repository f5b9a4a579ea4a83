"""Which rows train, which choose, which judge: fixed at upload, the same each time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.splits import SEED
from app.errors import BadDataset
from app.intake.manifest import Shares

Rows = npt.NDArray[np.int64]


def cut(y: npt.NDArray[Any], shares: Shares, *, has_val: bool, has_test: bool) -> dict[str, Rows]:
    """Row numbers of `train` and of what is missing among `val` and `test`; classes keep their proportions.

    y: [n, …]; integers are classes. A given test split leaves train and val their ratio. Raises BadDataset when there
    are too few rows.
    """
    rows = np.arange(len(y), dtype=np.int64)
    found: dict[str, Rows] = {}
    train = 1 - shares.val - shares.test
    missing = [name for name, has in (("test", has_test), ("val", has_val)) if not has]
    if len(y) < len(missing) + 1:
        raise BadDataset(f"{len(y)} rows are too few to cut into {len(missing) + 1} parts", hint="bring more rows")
    if not has_test:
        found["test"], rows = _part(y, rows, shares.test, spare=len(missing))
    if not has_val:
        found["val"], rows = _part(y, rows, shares.val / (train + shares.val), spare=1)
    return {"train": rows, **found}


def _part(y: npt.NDArray[Any], rows: Rows, share: float, spare: int) -> tuple[Rows, Rows]:
    """(taken, left), both sorted. Rows are shuffled, sorted by class and taken at even distances."""
    shuffled = np.random.default_rng(SEED).permutation(rows)
    if y.dtype.kind == "i" and y.ndim == 1:
        shuffled = shuffled[np.argsort(y[shuffled], kind="stable")]
    count = min(max(1, round(len(rows) * share)), len(rows) - spare)
    places = ((np.arange(count) + 0.5) * len(rows) / count).astype(np.int64)
    is_taken = np.zeros(len(rows), dtype=bool)
    is_taken[places] = True
    return np.sort(shuffled[is_taken]), np.sort(shuffled[~is_taken])


def told(found: dict[str, Rows], *, by_class: bool, has_val: bool, has_test: bool) -> str:
    """What was done, in a sentence. by_class: whether the targets are classes."""
    if has_val and has_test:
        return "train, val and test as uploaded"
    counts = ", ".join(f"{len(found[n])} rows {n}" for n in ("train", "val", "test") if n in found)
    kept = [name for name, has in (("val", has_val), ("test", has_test)) if has]
    as_given = f"; {' and '.join(kept)} as uploaded" if kept else ""
    how = "stratified by class" if by_class else "at random"
    return f"cut from what was uploaded, {how} with seed {SEED}: {counts}{as_given}"
