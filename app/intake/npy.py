"""Arrays on disk, read and written a few rows at a time, so that memory stays flat however long they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from app.errors import BadDataset
from app.settings import MiB

CHUNK = 4 * MiB
_LONGEST_HEADER = 10_000


class Writer:
    """A .npy file that grows by rows; its header is written when their number is known."""

    def __init__(self, path: Path, row: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self.row, self.dtype, self.rows = tuple(row), np.dtype(dtype), 0
        self._file = path.open("wb")
        self._header()

    def _header(self) -> None:
        # numpy pads this header so that the count may grow to any number without moving the data.
        described = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.row)}
        np.lib.format.write_array_header_1_0(self._file, described)

    def append(self, rows: npt.NDArray[Any]) -> None:
        """rows: [n, *row]."""
        self._file.write(np.ascontiguousarray(rows, dtype=self.dtype).data)
        self.rows += len(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.seek(0)
        self._header()
        self._file.close()


class Reader:
    """A .npy stream of hostile origin. Raises BadDataset for pickles and whatever is no plain array."""

    def __init__(self, stream: IO[bytes], name: str, size: int) -> None:
        """size: bytes of the whole stream."""
        self._stream, self.name = stream, name
        try:
            version = np.lib.format.read_magic(stream)
            if version == (1, 0):
                header = np.lib.format.read_array_header_1_0(stream, max_header_size=_LONGEST_HEADER)
            elif version == (2, 0):
                header = np.lib.format.read_array_header_2_0(stream, max_header_size=_LONGEST_HEADER)
            else:
                raise ValueError(f"its format {version} is not known")
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            raise BadDataset(f"{name} is no array of numpy: {str(error)[:200]}", hint="use np.savez") from None
        self.shape, self.fortran, self.dtype = header
        if self.dtype.hasobject:
            raise BadDataset(
                f"{name} is an array of Python objects, which only a pickle can hold, and pickles are never loaded",
                code="pickle_refused",
                hint="give numbers: rows of unequal length make such an array, too",
            )
        if self.dtype.names or self.dtype.subdtype or self.dtype.kind not in "biuf":
            raise BadDataset(f"{name} has dtype {self.dtype}; taken are booleans, integers and floats")
        if self.dtype.itemsize > 8:
            raise BadDataset(f"{name} has dtype {self.dtype}; at most 64 bits are taken", hint="astype('float32')")
        if len(self.shape) > 32 or any(n < 0 for n in self.shape):
            raise BadDataset(f"{name} has the impossible shape {self.shape}")
        # The stream's length is known: a shape that claims more must not make anybody allocate it.
        wanted = math.prod(self.shape) * self.dtype.itemsize
        held = size - stream.tell()
        if wanted != held:
            raise BadDataset(
                f"{name} is damaged: shape {list(self.shape)} takes {wanted} bytes, and {held} are there",
                code="truncated",
            )

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 0

    def chunks(self, scratch: Path) -> Iterator[npt.NDArray[Any]]:
        """The rows in order, some MiB at a time, in native byte order."""
        native = self.dtype.newbyteorder("=")
        row = self.shape[1:]
        width = math.prod(row) * self.dtype.itemsize
        step = max(1, CHUNK // max(1, width))
        if self.fortran and len(self.shape) > 1:
            yield from self._columns(scratch, native, step)
            return
        for start in range(0, self.rows, step):
            n = min(step, self.rows - start)
            data = _exactly(self._stream, n * width, self.name)
            yield np.frombuffer(data, self.dtype).reshape(n, *row).astype(native, copy=False)

    def _columns(self, scratch: Path, native: np.dtype[Any], step: int) -> Iterator[npt.NDArray[Any]]:
        """Column-major data lie on disk while their rows are picked."""
        path = scratch / "columns.raw"
        try:
            with path.open("wb") as file:
                left = math.prod(self.shape) * self.dtype.itemsize
                while left:
                    data = _exactly(self._stream, min(left, CHUNK), self.name)
                    file.write(data)
                    left -= len(data)
            held = np.memmap(path, self.dtype, "r", shape=self.shape, order="F")
            for start in range(0, self.rows, step):
                yield np.ascontiguousarray(held[start : start + step]).astype(native, copy=False)
        finally:
            path.unlink(missing_ok=True)

    def whole(self, scratch: Path) -> npt.NDArray[Any]:
        """All rows at once: for targets."""
        found = list(self.chunks(scratch))
        return np.concatenate(found) if found else np.empty(self.shape, self.dtype)


def _exactly(stream: IO[bytes], n: int, name: str) -> bytes:
    held = bytearray()
    while len(held) < n:
        data = stream.read(n - len(held))
        if not data:
            raise BadDataset(f"{name} was cut short", code="truncated")
        held += data
    return bytes(held)


def check_finite(rows: npt.NDArray[Any], first: int, name: str) -> None:
    """Raises BadDataset naming the first row with NaN or infinity. first: the number of the first of these rows."""
    if rows.dtype.kind != "f":
        return
    fine = np.isfinite(rows)
    if fine.all():
        return
    where = np.argwhere(~fine)[0]
    value = rows[tuple(where)]
    place = f"row {first + int(where[0])}" + (f" at {[int(i) for i in where[1:]]}" if len(where) > 1 else "")
    raise BadDataset(
        f"{name} has {value} in {place}", code="not_finite", hint="replace or drop such rows before uploading"
    )
