"""Memory that inputs are gathered into and engines read from: kept from run to run, because fresh memory for every
batch costs many times what the copy does."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.records import Signature
from app.domain.tensors import DTYPES
from app.runtimes import Arrays, Engine

_ALIGNMENT = 64  # a cache line; AVX-512 reads one at a time
_KINDS_KEPT = 16
_BYTES_KEPT = 64 << 20  # by kinds other than the one in use
Shapes = tuple[tuple[int, ...], ...]


class Room:
    """Arrays for a batch of one size, in the signature's order. bound: what an engine has made of them."""

    __slots__ = ("arrays", "bound", "names")

    def __init__(self, names: list[str], arrays: list[npt.NDArray[Any]]) -> None:
        self.names = names
        self.arrays = arrays
        self.bound: Any = None

    def fill(self, parts: Sequence[Arrays], rows: int | None = None) -> None:
        """Copies the rows in, once. What is read-only, strided or short-lived in `parts` does not matter after it.
        rows: how many there are, where that is fewer than there is room for: the others become zeros."""
        for name, whole in zip(self.names, self.arrays, strict=True):
            if rows is not None:
                whole[rows:] = 0
                whole = whole[:rows]
            if len(parts) == 1:
                np.copyto(whole, parts[0][name])
            else:
                np.concatenate([part[name] for part in parts], out=whole)

    def named(self) -> dict[str, npt.NDArray[Any]]:
        return dict(zip(self.names, self.arrays, strict=True))


class _Kind:
    """The memory for one set of shapes. Every size of batch uses the beginning of the same memory."""

    __slots__ = ("capacity", "rooms", "wholes")

    def __init__(self) -> None:
        self.capacity = 0
        self.wholes: list[npt.NDArray[Any]] = []
        self.rooms: dict[int, Room] = {}

    @property
    def nbytes(self) -> int:
        return sum(whole.nbytes for whole in self.wholes)


class Buffers:
    """What one slot keeps. It grows to the largest batch met, by doubling, and to a few kinds where shapes vary."""

    def __init__(self, signature: Signature, max_rows: int) -> None:
        self._names = [t.name for t in signature.inputs]
        self._dtypes = [DTYPES[t.dtype] for t in signature.inputs]
        self._batched = signature.batched
        self._max_rows = max_rows
        inner = tuple(t.shape[1:] if self._batched else t.shape for t in signature.inputs)
        self._fixed: Shapes | None = None if any(-1 in shape for shape in inner) else inner
        self._kinds: OrderedDict[Shapes, _Kind] = OrderedDict()

    def room(self, like: Arrays, rows: int) -> Room:
        """Where a batch of `rows` rows whose requests are shaped as `like` goes. The same object for the same size as
        long as the memory behind it stays."""
        shapes = self._fixed
        if shapes is None:
            skip = 1 if self._batched else 0
            shapes = tuple(like[name].shape[skip:] for name in self._names)
        kind = self._kinds.get(shapes)
        if kind is None:
            kind = self._kinds[shapes] = _Kind()
        elif self._fixed is None:
            self._kinds.move_to_end(shapes)
        return kind.rooms.get(rows) or self._new(kind, shapes, rows)

    def _new(self, kind: _Kind, shapes: Shapes, rows: int) -> Room:
        if rows > kind.capacity:
            kind.rooms.clear()
            kind.wholes.clear()
            # Address space for twice the rows is free until somebody writes to it.
            kind.capacity = max(rows, min(self._max_rows, 1 << (rows - 1).bit_length()))
            sizes = [(kind.capacity, *shape) if self._batched else shape for shape in shapes]
            kind.wholes = [_aligned(size, dtype) for size, dtype in zip(sizes, self._dtypes, strict=True)]
            self._forget()
        arrays = [whole[:rows] for whole in kind.wholes] if self._batched else list(kind.wholes)
        room = kind.rooms[rows] = Room(self._names, arrays)
        return room

    def _forget(self) -> None:
        """Lets go of the kinds that were not used for longest."""
        others = sum(kind.nbytes for kind in self._kinds.values()) - next(reversed(self._kinds.values())).nbytes
        while len(self._kinds) > 1 and (len(self._kinds) > _KINDS_KEPT or others > _BYTES_KEPT):
            others -= self._kinds.popitem(last=False)[1].nbytes


def padded(rows: int, met: Collection[int]) -> int:
    """The size that a batch of `rows` rows is run with, where the first run of a size is dear: one that was met before,
    if there is one that is at most a quarter larger."""
    if rows in met:
        return rows
    return next((size for size in range(rows + 1, rows + rows // 4 + 1) if size in met), rows)


class PlainSlot:
    """The slot of an engine that has none of its own: gathers into kept memory, and hands that to `infer`."""

    fresh = True

    def __init__(self, engine: Engine, max_rows: int) -> None:
        self._engine = engine
        self._buffers = Buffers(engine.signature, max_rows)
        self._inputs: Arrays = {}

    def fill(self, parts: Sequence[Arrays], rows: int) -> None:
        if len(parts) == 1:
            self._inputs = parts[0]  # `infer` reads what it is given: no copy at all
            return
        room = self._buffers.room(parts[0], rows)
        room.fill(parts)
        self._inputs = room.named()

    def run(self) -> dict[str, npt.NDArray[Any]]:
        inputs, self._inputs = self._inputs, {}
        return self._engine.infer(inputs)


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if dtype.hasobject:
        return np.empty(shape, dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
