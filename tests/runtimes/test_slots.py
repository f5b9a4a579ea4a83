"""Kept memory: how it is laid out, when it grows, and what it forgets."""

from __future__ import annotations

import numpy as np
import pytest

from app.domain.records import Signature, Tensor
from app.runtimes import _slots, slot_of
from app.runtimes._slots import Buffers
from app.runtimes.echo import EchoEngine

FIXED = Signature(inputs=(Tensor(name="x", shape=(-1, 3)), Tensor(name="k", dtype="int64", shape=(-1,))))
OPEN = Signature(inputs=(Tensor(name="x", shape=(-1, -1)),))
TEXT = Signature(inputs=(Tensor(name="t", dtype="string", shape=(-1, 2)),))


def part(rows: int, width: int = 3) -> dict[str, np.ndarray]:
    return {"x": np.full((rows, width), rows, np.float32), "k": np.arange(rows)}


def test_every_size_is_the_beginning_of_the_same_memory() -> None:
    buffers = Buffers(FIXED, 64)
    large = buffers.room(part(1), 33)
    small = buffers.room(part(1), 4)
    assert [a.shape for a in large.arrays] == [(33, 3), (33,)]
    assert [a.ctypes.data for a in small.arrays] == [a.ctypes.data for a in large.arrays]
    assert buffers.room(part(1), 33) is large
    assert all(a.ctypes.data % 64 == 0 and a.flags.c_contiguous and a.flags.writeable for a in large.arrays)


def test_it_grows_by_doubling_up_to_the_largest_batch() -> None:
    buffers = Buffers(FIXED, 6)
    first = buffers.room(part(1), 3)
    kind = next(iter(buffers._kinds.values()))
    assert kind.capacity == 4
    assert buffers.room(part(1), 4).arrays[0].ctypes.data == first.arrays[0].ctypes.data
    buffers.room(part(1), 5)
    assert kind.capacity == 6
    assert buffers.room(part(1), 3) is not first  # its memory has been left behind
    buffers.room(part(1), 100)
    assert kind.capacity == 100


def test_rows_lie_one_behind_the_other() -> None:
    room = Buffers(FIXED, 8).room(part(1), 6)
    room.fill([part(1), part(3), part(2)])
    assert room.named()["x"][:, 0].tolist() == [1, 3, 3, 3, 2, 2]
    assert room.named()["k"].tolist() == [0, 0, 1, 2, 0, 1]


def test_strings() -> None:
    room = Buffers(TEXT, 8).room({"t": np.array([["a", "b"]], object)}, 2)
    room.fill([{"t": np.array([["a", "b"]], object)}, {"t": np.array([["c", "d"]], object)}])
    assert room.arrays[0].tolist() == [["a", "b"], ["c", "d"]]


def test_kinds_that_were_not_used_for_long_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_slots, "_KINDS_KEPT", 3)
    buffers = Buffers(OPEN, 8)
    for width in (1, 2, 3, 1, 4):
        buffers.room(part(1, width), 2)
    assert [shapes[0][0] for shapes in buffers._kinds] == [3, 1, 4]


def test_large_kinds_are_forgotten_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_slots, "_BYTES_KEPT", 100)
    buffers = Buffers(OPEN, 8)
    for width in (4, 5, 1000, 6):
        buffers.room(part(1, width), 4)
    assert [shapes[0][0] for shapes in buffers._kinds] == [6]


def test_an_engine_without_slots_is_given_kept_memory() -> None:
    signature = OPEN.but(outputs=(Tensor(name="y", shape=(-1, -1)),))
    given: list[np.ndarray] = []

    class Watched(EchoEngine):
        def infer(self, inputs):  # type: ignore[no-untyped-def]
            given.append(inputs["x"])
            return super().infer(inputs)

    slot = slot_of(Watched(signature), 8)
    alone = {"x": np.zeros((2, 3), np.float32)}
    for parts in ([alone], [alone, alone], [alone, alone]):
        slot.fill(parts, 2 * len(parts))
        assert slot.run()["y"].shape == (2 * len(parts), 3)
    assert given[0] is alone["x"]
    assert given[1].ctypes.data == given[2].ctypes.data
