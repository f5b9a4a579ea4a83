"""A data set's arrays as they lie on the disk, memory-mapped, for whoever has no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.records import Split
from app.errors import BadDataset


@dataclass(frozen=True)
class Stored:
    """One split. x: (rows, …); y: int64 classes or float32; index: the rows of those files that are meant, or all."""

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    index: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.x if self.index is None else self.index)

    def rows(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """x and y in the split's order; copied where an index picks them."""
        return (self.x, self.y) if self.index is None else (self.x[self.index], self.y[self.index])


def open_split(split: Split, folder: Path) -> Stored:
    """The files of a split below `folder`. Raises BadDataset where they hold another number of rows than it says."""
    index = None if split.index is None else np.load(folder / split.index).astype(np.int64)
    stored = Stored(_mapped(folder / split.x), _mapped(folder / split.y), index)
    if len(stored) != split.rows:
        raise BadDataset(f"{split.x} holds {len(stored)} rows where the data set's record says {split.rows}")
    return stored


def _mapped(path: Path) -> npt.NDArray[Any]:
    # "c": pages are shared with the file until written to, and torch wants memory that it may write to.
    return np.asarray(np.load(path, mmap_mode="c"))
