"""Data sets as a pass sees them: memory-mapped splits and batches of them as tensors. Nothing but a batch is copied."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from app.domain.records import Dataset, Signature, Split
from app.errors import BadDataset
from workers.arrays import open_split

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Rows:
    """One split. x: (rows, …) in the model's own layout; y: int64 classes or float32; index: rows of the files."""

    x: torch.Tensor
    y: torch.Tensor
    index: torch.Tensor | None = None
    # What batches are cast to; None: as stored.
    dtype: torch.dtype | None = None

    def __len__(self) -> int:
        return len(self.x if self.index is None else self.index)

    def take(self, rows: torch.Tensor) -> Batch:
        """The rows of those int64 numbers, copied."""
        where = rows if self.index is None else self.index.index_select(0, rows)
        x = self.x.index_select(0, where)
        return x if self.dtype is None else x.to(self.dtype), self.y.index_select(0, where)

    def batches(self, size: int, shuffle: torch.Generator | None = None, *, lone_row: bool = True) -> Iterator[Batch]:
        """Every row once, in batches of `size`, the last one shorter.

        lone_row: False joins a last batch of one row to the one before it, because batch norm cannot train on one row.
        """
        for rows in self.picks(size, shuffle, lone_row=lone_row):
            yield self.take(rows)

    def picks(
        self, size: int, shuffle: torch.Generator | None = None, *, lone_row: bool = True
    ) -> Iterator[torch.Tensor]:
        """The row numbers of those batches, for `take`."""
        order = torch.arange(len(self)) if shuffle is None else torch.randperm(len(self), generator=shuffle)
        for start, end in self.cuts(size, lone_row=lone_row):
            yield order[start:end]

    def cuts(self, size: int, *, lone_row: bool = True) -> list[tuple[int, int]]:
        """Where `batches` cuts: [(start, end), …]."""
        starts = list(range(0, len(self), size))
        if not lone_row and size > 1 and len(starts) > 1 and len(self) - starts[-1] == 1:
            starts.pop()
        return list(zip(starts, [*starts[1:], len(self)], strict=True))

    def subset(self, rows: torch.Tensor) -> Rows:
        """Only those rows."""
        index = rows if self.index is None else self.index.index_select(0, rows)
        return Rows(self.x, self.y, index, self.dtype)

    def sample(self, n: int, seed: int) -> Rows:
        """n rows drawn without replacement; all of them where there are no more."""
        if n >= len(self):
            return self
        drawn = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:n]
        return self.subset(drawn.sort().values)

    def labels(self) -> npt.NDArray[Any]:
        """y of every row."""
        return np.asarray(self.y if self.index is None else self.y.index_select(0, self.index))


@dataclass(frozen=True)
class Data:
    """A data set, opened. task: "classification" where y is int64, else "regression"."""

    record: Dataset
    train: Rows
    val: Rows
    test: Rows

    @property
    def ref(self) -> str:
        return self.record.ref

    @property
    def task(self) -> str:
        return "classification" if self.record.y_dtype == "int64" else "regression"

    def split(self, name: Literal["train", "val", "test"]) -> Rows:
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def fit_to(self, signature: Signature) -> Data:
        """The same data with batches in the dtype that the model takes. Raises BadDataset where they do not fit it."""
        dtype = _fitting_dtype(self.record, signature)
        train, val, test = (Rows(r.x, r.y, r.index, dtype) for r in (self.train, self.val, self.test))
        return Data(self.record, train, val, test)


def open_dataset(record: Dataset, folder: Path) -> Data:
    """Opens the files of a data set below `folder`, memory-mapped."""
    return Data(record, *(_open(record.splits[name], folder) for name in ("train", "val", "test")))


def _open(split: Split, folder: Path) -> Rows:
    stored = open_split(split, folder)
    index = None if stored.index is None else torch.from_numpy(stored.index)
    return Rows(torch.from_numpy(stored.x), torch.from_numpy(stored.y), index)


def _fitting_dtype(record: Dataset, signature: Signature) -> torch.dtype | None:
    if len(signature.inputs) != 1:
        names = ", ".join(t.name for t in signature.inputs)
        raise BadDataset(
            f"the model takes {len(signature.inputs)} inputs ({names}); a data set of arrays feeds models of one input",
            hint="omit the data set: convert then checks parity alone",
        )
    wanted = signature.inputs[0]
    axis = wanted.batch_axis
    if axis is None and wanted.shape[:1] == (1,):  # a model of one row at a time
        axis = 0
    if axis is None:
        raise BadDataset(f"the model's input {wanted.name!r} has no batch axis: rows of a data set cannot be fed to it")
    row = tuple(n for a, n in enumerate(wanted.shape) if a != axis)
    if len(row) != len(record.x_shape) or any(w not in (-1, n) for w, n in zip(row, record.x_shape, strict=True)):
        raise BadDataset(
            f"rows of the data set {record.ref} have the shape {list(record.x_shape)}; "
            f"the model's input {wanted.name!r} takes {list(row)}",
            hint="arrays must be in the model's own layout: push them again in that shape",
        )
    if wanted.dtype == record.x_dtype:
        return None
    if "float" not in wanted.dtype and ("float" in record.x_dtype or record.x_dtype == "bool"):
        raise BadDataset(
            f"the data set {record.ref} holds {record.x_dtype}; the model's input {wanted.name!r} takes {wanted.dtype}"
        )
    found = getattr(torch, wanted.dtype, None)
    if not isinstance(found, torch.dtype):
        raise BadDataset(f"the model's input {wanted.name!r} is {wanted.dtype}: a data set of arrays cannot feed it")
    return found
