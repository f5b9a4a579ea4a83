"""How a data set's missing splits were cut, told so that anybody can cut them again."""

from __future__ import annotations

from typing import Any

from app.domain.records import Dataset

SEED = 0
RULE = (
    "for test, then for val of what is left in ascending order: numpy.random.default_rng(seed).permutation(rows), "
    "sorted stably by class where y are classes; of its n rows the k of the split are at int((i + 0.5) * n / k), i < k"
)


def told(dataset: Dataset) -> dict[str, Any]:
    """rows: by split. note: what was uploaded, and what was cut. index: of the splits that were cut, where their row
    numbers lie (.npy, int64: numbers of the uploaded rows)."""
    at = f"/v1/datasets/{dataset.name}/versions/{dataset.version}/files"
    cut = {name: f"{at}/{split.index}" for name, split in dataset.splits.items() if split.index is not None}
    found: dict[str, Any] = {
        "dataset": dataset.ref,
        "rows": {name: split.rows for name, split in dataset.splits.items()},
        "note": dataset.split_note,
    }
    return found | ({"seed": SEED, "rule": RULE, "index": cut} if cut else {})
