"""What is pushed, as an open file with a name: paths are streamed, arrays go through a temporary file."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

KINDS = {".npz": "arrays", ".zip": "images", ".csv": "table", ".gz": "table", ".parquet": "table"}


@contextmanager
def opened(source: Any, filename: str) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, file) of a path, bytes, or an open binary file; closed after, unless it was given open."""
    if isinstance(source, bytes | bytearray | memoryview):
        yield filename, io.BytesIO(bytes(source))
    elif hasattr(source, "read"):
        yield Path(str(getattr(source, "name", filename))).name, source
    else:
        path = Path(source)
        with path.open("rb") as file:
            yield path.name, file


@contextmanager
def packed(arrays: Mapping[str, Any]) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, file) of arrays as one .npz in a temporary file, so that a large data set is not held twice."""
    named = {name: np.asarray(value) for name, value in arrays.items() if value is not None}
    for name, value in named.items():
        if value.dtype == object:
            raise TypeError(f"{name} is an array of Python objects; give numbers (rows of unequal length, perhaps?)")
    with tempfile.TemporaryFile(suffix=".npz") as file:
        write_npz(file, named)
        file.seek(0)
        yield "data.npz", file


def write_npz(file: IO[bytes], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Like np.savez, but any name will do (np.savez cannot write an array called `file`) and nothing is pickled."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def kind_of(filename: str) -> str:
    """arrays, images or table, by the end of a file's name. Raises ValueError."""
    found = KINDS.get(Path(filename).suffix.lower())
    if found is None:
        raise ValueError(
            f"cannot tell what {filename} holds: say kind= 'arrays' (.npz), 'images' (.zip) or 'table' (.csv, .parquet)"
        )
    return found
