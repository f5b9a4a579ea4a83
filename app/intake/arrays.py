"""Data sets of kind `arrays`: a .npz with x and y, and x_val, y_val, x_test, y_test where they are given."""

from __future__ import annotations

import math
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import BadDataset, UnsupportedMedia
from app.intake import archives
from app.intake.draft import Intake, Rows, x_file
from app.intake.npy import Reader, Writer, check_finite
from app.intake.targets import as_targets

_NAMES = {
    "x": ("train", "x"), "x_train": ("train", "x"), "y": ("train", "y"), "y_train": ("train", "y"),
    "x_val": ("val", "x"), "y_val": ("val", "y"), "x_test": ("test", "x"), "y_test": ("test", "y"),
}  # fmt: skip


def read(given: Intake) -> Rows:
    """Streams every array to the folder. Raises BadDataset, UnsupportedMedia, TooLarge."""
    with given.file.open("rb") as file:
        if file.read(2) != b"PK":
            raise UnsupportedMedia(
                "kind 'arrays' takes a .npz file, and this is none",
                code="not_npz",
                hint="np.savez('data.npz', x=x, y=y)",
            )
    with zipfile.ZipFile(given.file) as archive:
        held = _members(archive, given)
        targets: dict[str, npt.NDArray[Any]] = {}
        shape: tuple[int, ...] | None = None
        dtype: np.dtype[Any] | None = None
        notes: list[str] = []
        for split in ("train", "val", "test"):
            if (split, "x") not in held:
                continue
            with archive.open(held[split, "y"]) as stream:
                reader = Reader(stream, held[split, "y"].filename, held[split, "y"].file_size)
                if not reader.shape:
                    raise BadDataset(f"{reader.name} is a single number", hint="one target a row")
                targets[split] = as_targets(reader.whole(given.scratch), given.manifest.task, _told(reader.name))
            with archive.open(held[split, "x"]) as stream:
                reader = Reader(stream, held[split, "x"].filename, held[split, "x"].file_size)
                name = _told(reader.name)
                if len(reader.shape) < 2:
                    raise BadDataset(
                        f"{name} has shape {list(reader.shape)}: rows along the first axis, and something in them",
                        hint="x.reshape(-1, 1) for a single number a row",
                    )
                if reader.rows != len(targets[split]):
                    raise BadDataset(
                        f"{name} has {reader.rows} rows, and its targets have {len(targets[split])}",
                        code="rows_differ",
                        hint="one target for every row, in the same order",
                    )
                stored = np.dtype(np.float32) if reader.dtype.kind == "f" else reader.dtype.newbyteorder("=")
                if shape is not None and (reader.shape[1:], stored) != (shape, dtype):
                    raise BadDataset(
                        f"{name} has rows of {stored} {list(reader.shape[1:])}, and x has {dtype} {list(shape)}"
                    )
                shape, dtype = reader.shape[1:], stored
                if reader.dtype.kind == "f" and reader.dtype != stored and not notes:
                    notes.append(f"x came as {reader.dtype.name} and is kept as float32")
                _store(reader, given, split, stored)
    assert shape is not None
    assert dtype is not None
    return Rows(shape, dtype.name, targets, notes=notes)


def _members(archive: zipfile.ZipFile, given: Intake) -> dict[tuple[str, str], zipfile.ZipInfo]:
    size = given.file.stat().st_size
    for _ in archives.guarded(
        archives.of_zip(archive), archive_bytes=size, max_files=given.max_files, max_bytes=given.max_bytes
    ):
        pass
    held: dict[tuple[str, str], zipfile.ZipInfo] = {}
    for info in archive.infolist():
        place = _NAMES.get(_told(info.filename))
        if place is None:
            raise BadDataset(
                f"the .npz has {archives.told(_told(info.filename))}, which means nothing here",
                code="unknown_array",
                hint="x and y; optionally x_val, y_val, x_test, y_test",
            )
        if place in held:
            raise BadDataset(f"the .npz has both {_told(held[place].filename)} and {_told(info.filename)}")
        held[place] = info
    for split in ("train", "val", "test"):
        has = [part for part in ("x", "y") if (split, part) in held]
        suffix = "" if split == "train" else f"_{split}"
        if (split == "train" and len(has) < 2) or len(has) == 1:
            lacks = "x" if "x" not in has else "y"
            raise BadDataset(
                f"the .npz has no array {lacks}{suffix}", code="missing_array", hint="np.savez('data.npz', x=x, y=y)"
            )
    return held


def _store(reader: Reader, given: Intake, split: str, stored: np.dtype[Any]) -> None:
    name = _told(reader.name)
    if math.prod(reader.shape) * stored.itemsize > given.max_bytes:
        raise BadDataset(f"{name} takes more than {given.max_bytes} bytes")
    with Writer(given.folder / x_file(split), reader.shape[1:], stored) as writer:
        for rows in reader.chunks(given.scratch):
            check_finite(rows, writer.rows, name)
            if rows.dtype != stored:
                with np.errstate(over="ignore"):
                    rows = rows.astype(stored)
                check_finite(rows, writer.rows, f"{name} as {stored.name}")
            writer.append(rows)


def _told(name: str) -> str:
    return name.removesuffix(".npy")
