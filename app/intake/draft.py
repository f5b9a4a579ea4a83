"""What reading a data set yields: files in a folder, and the record that describes them but for name and number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import BadDataset
from app.intake import splits
from app.intake.manifest import DatasetManifest
from app.intake.targets import count_classes


@dataclass(frozen=True)
class Intake:
    """What a reader is given. folder: where its files go, and nothing else is there."""

    file: Path
    folder: Path
    scratch: Path
    manifest: DatasetManifest
    max_bytes: int
    max_files: int


@dataclass
class Rows:
    """What a reader has found. parts: the splits of the upload, `train` being what is cut where others are missing."""

    x_shape: tuple[int, ...]
    x_dtype: str
    targets: dict[str, npt.NDArray[Any]]  # by split
    labels: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None
    preprocess: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def x_file(split: str) -> str:
    return "x.npy" if split == "train" else f"x_{split}.npy"


def y_file(split: str) -> str:
    return "y.npy" if split == "train" else f"y_{split}.npy"


def describe(found: Rows, given: Intake) -> dict[str, Any]:
    """Writes targets and row numbers, and gives the fields of a records.Dataset. Raises BadDataset."""
    manifest, targets = given.manifest, found.targets
    labels = found.labels or (tuple(manifest.labels) if manifest.labels else None)
    for split, y in targets.items():
        if not len(y):
            raise BadDataset(f"there is no row in {split}", code="empty", hint="bring some, or leave that split out")
    if 0 in found.x_shape:
        raise BadDataset(f"a row of x has the empty shape {list(found.x_shape)}", code="empty")
    shapes = {y.shape[1:] for y in targets.values()}
    if len(shapes) > 1:
        raise BadDataset(f"y has different shapes per split: {sorted(map(list, shapes))}")
    classes = count_classes(targets, labels, manifest.classes)
    has_val, has_test = "val" in targets, "test" in targets
    cut: Mapping[str, splits.Rows] = {}
    if not (has_val and has_test):
        cut = splits.cut(targets["train"], manifest.splits, has_val=has_val, has_test=has_test)
    for split, y in targets.items():
        np.save(given.folder / y_file(split), y, allow_pickle=False)
    for split, rows in cut.items():
        np.save(given.folder / f"{split}_rows.npy", rows, allow_pickle=False)
    described = {}
    for split in ("train", "val", "test"):
        source = split if split in targets else "train"
        index = f"{split}_rows.npy" if split in cut else None
        count = len(cut[split]) if split in cut else len(targets[split])
        described[split] = {"rows": count, "x": x_file(source), "y": y_file(source), "index": index}
    note = splits.told(dict(cut), by_class=classes is not None, has_val=has_val, has_test=has_test)
    return {
        "kind": manifest.kind,
        "x_shape": found.x_shape,
        "x_dtype": found.x_dtype,
        "y_dtype": "int64" if classes is not None else "float32",
        "y_shape": next(iter(shapes)),
        "classes": classes,
        "labels": labels,
        "splits": described,
        "split_note": "; ".join([note, *found.notes]),
        "preprocess": found.preprocess,
        "columns": found.columns,
    }
