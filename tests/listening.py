"""A small data set of noise and bands, and a context that hears a training instead of sending it away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from app.domain.records import Dataset, Split, now
from workers.nn.data import Data, open_dataset


class Listener:
    """What `fit` needs of a context; stops after `dies_after` checkpoints, as a killed process would."""

    device, threads, seed = "cpu", 1, 0
    fetched: Path | None = None

    def __init__(self, scratch: Path, dies_after: int | None = None) -> None:
        self.scratch, self.dies_after = scratch, dies_after
        self.rows: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.kept: list[tuple[int, bytes]] = []
        scratch.mkdir(exist_ok=True)

    def progress(self, done: float, total: float | None = None, unit: str = "", phase: str | None = None) -> None:
        assert total is None or 0 <= done <= total

    def recalled(self, path: Path) -> bool:
        return False

    def share(self, path: Path) -> None:
        return None

    def metrics(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def log(self, text: str, level: str = "info") -> None:
        self.lines.append(text)

    def checkpoint(self, state: Path, epoch: int) -> None:
        self.kept.append((epoch, state.read_bytes()))
        if self.dies_after is not None and len(self.kept) >= self.dies_after:
            raise KeyboardInterrupt

    def last_checkpoint(self) -> tuple[int, Path] | None:
        if not self.kept:
            return None
        path = self.scratch / "found"
        path.write_bytes(self.kept[-1][1])
        return self.kept[-1][0], path


def made(folder: Path, x: np.ndarray, y: np.ndarray, cut: tuple[int, int]) -> Data:
    """One x and one y on disk, and the three splits as indices into them."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    splits = {}
    order = np.random.default_rng(1).permutation(len(x))
    for name, rows in zip(("train", "val", "test"), np.split(order, cut), strict=True):
        np.save(folder / f"{name}.npy", rows)
        splits[name] = Split(rows=len(rows), x="x.npy", y="y.npy", index=f"{name}.npy")
    record = Dataset(
        name="bands", version=1, kind="arrays", folder="", files={}, bytes=0, x_shape=x.shape[1:], x_dtype=x.dtype.name,
        y_dtype=y.dtype.name, y_shape=y.shape[1:], splits=splits, split_note="", created_at=now(),
        classes=int(y.max()) + 1 if y.dtype == np.int64 else None,
    )  # fmt: skip
    return open_dataset(record, folder)
