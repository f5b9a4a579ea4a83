"""What travels between a front, which speaks HTTP, and the host of the engines: frames of a fixed head and a body.

Both ends are processes of one service on one machine: native byte order, and the clock of time.monotonic is shared.
Everything is padded to 8 bytes, so that tensors can be read where they lie.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import orjson

from app.domain.records import Tensor
from app.domain.tensors import DTYPES
from app.errors import TooLarge

_HEAD = struct.Struct("=QIHBx")  # bytes of the body, id, lane, kind
HEAD = _HEAD.size
MOST_LANES = 0xFFFF
_ASK = struct.Struct("=dBB6x")  # deadline (0: none), priority, whether stages are wanted
_TOLD = struct.Struct("=5dII")  # Times
_SHAPE = struct.Struct("=QQ")  # dimensions, bytes
_LENGTH = struct.Struct("=Q")
_COPIED = 4096  # smaller arrays are cheaper copied than sent from where they lie
_LOWEST = 0xFF  # priority: larger numbers wait no longer than this
LARGEST = 1 << 32
# A frame that is not whole in what has arrived yet gets memory of its own when it is longer than this.
_LONG = 64 * 1024


class Kind(IntEnum):
    """INFER → ANSWER or FAIL; CANCEL and NOTE → nothing; CALL → RESULT or FAIL; TABLE comes unasked."""

    INFER = 1
    ANSWER = 2
    FAIL = 3
    CANCEL = 4
    NOTE = 5
    CALL = 6
    RESULT = 7
    TABLE = 8


class Frame(NamedTuple):
    kind: int
    id: int
    lane: int
    body: memoryview


class Reader:
    """Cuts what a socket gives into frames. Raises ValueError for a length that cannot be."""

    def __init__(self) -> None:
        self._rest = b""
        self._long: bytearray | None = None
        self._have = 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        if self._long is not None:
            need = len(self._long) - self._have
            self._long[self._have : self._have + min(need, len(data))] = data[:need]
            self._have += min(need, len(data))
            if len(data) < need:
                return
            whole, self._long = self._long, None
            yield _frame(memoryview(whole), 0)[0]
            data = data[need:]  # rarely: the end of a long frame and the start of the next in one piece
        if self._rest:
            data = self._rest + data
            self._rest = b""
        view, at, end = memoryview(data), 0, len(data)
        while end - at >= HEAD:
            size = _HEAD.unpack_from(data, at)[0]
            if size > LARGEST:
                raise ValueError(f"a frame of {size} bytes")
            if end - at < HEAD + size:
                if HEAD + size > _LONG:
                    self._long = bytearray(HEAD + size)
                    self._long[: end - at] = view[at:]
                    self._have = end - at
                    return
                break
            frame, at = _frame(view, at)
            yield frame
        self._rest = bytes(view[at:])


def _frame(view: memoryview, at: int) -> tuple[Frame, int]:
    size, id, lane, kind = _HEAD.unpack_from(view, at)
    end = at + HEAD + size
    return Frame(kind, id, lane, view[at + HEAD : end]), end


def head(kind: Kind, id: int, lane: int, size: int) -> bytes:
    return _HEAD.pack(size, id, lane, kind)


def plain(kind: Kind, id: int, value: Any, lane: int = 0) -> list[Any]:
    """A frame whose body is JSON."""
    body = orjson.dumps(value, default=str)
    body += b" " * (-len(body) % 8)
    return [head(kind, id, lane, len(body)), body]


def read_plain(frame: Frame) -> Any:
    return orjson.loads(frame.body)


class Asked(NamedTuple):
    deadline: float | None
    priority: int
    stages: bool
    inputs: dict[str, npt.NDArray[Any]]


def ask(
    id: int,
    lane: int,
    inputs: Mapping[str, npt.NDArray[Any]],
    tensors: Sequence[Tensor],
    deadline: float | None,
    priority: int,
    stages: bool,
) -> list[Any]:
    """An INFER frame, in pieces to be written one after the other. inputs: every tensor of the signature.

    Raises TooLarge.
    """
    pieces: list[Any] = [b"", _ASK.pack(deadline or 0.0, min(priority, _LOWEST), stages)]
    size = _sendable(_ASK.size + _put(pieces, inputs, tensors), "the inputs")
    pieces[0] = head(Kind.INFER, id, lane, size)
    return pieces


def read_ask(frame: Frame, tensors: Sequence[Tensor]) -> Asked:
    """inputs: views of the frame."""
    deadline, priority, stages = _ASK.unpack_from(frame.body)
    return Asked(deadline or None, priority, bool(stages), _take(frame.body, _ASK.size, tensors))


class Times(NamedTuple):
    """When a request came to the queue, its run began, its rows were gathered, it ended and was answered (monotonic s,
    which every process of a machine reads alike); its batch."""

    came: float
    started: float
    gathered: float
    ended: float
    answered: float
    rows: int
    requests: int


_NO_TIMES = Times(0, 0, 0, 0, 0, 0, 0)


def answer(
    id: int, outputs: Mapping[str, npt.NDArray[Any]], tensors: Sequence[Tensor], times: Times | None
) -> list[Any]:
    """An ANSWER frame, in pieces. Raises TooLarge."""
    pieces: list[Any] = [b"", _TOLD.pack(*(times or _NO_TIMES))]
    size = _sendable(_TOLD.size + _put(pieces, outputs, tensors), "the outputs")
    pieces[0] = head(Kind.ANSWER, id, 0, size)
    return pieces


def read_answer(frame: Frame, tensors: Sequence[Tensor]) -> tuple[dict[str, npt.NDArray[Any]], Times]:
    """outputs: views of the frame, which nobody else holds."""
    return _take(frame.body, _TOLD.size, tensors), Times(*_TOLD.unpack_from(frame.body))


def _sendable(size: int, what: str) -> int:
    """Raises TooLarge for a frame that the other end would give the connection up for."""
    if size > LARGEST:
        raise TooLarge(
            f"{what} are {size} bytes, and at most {LARGEST} are handed on", hint="send fewer rows at a time"
        )
    return size


def _put(pieces: list[Any], arrays: Mapping[str, npt.NDArray[Any]], tensors: Sequence[Tensor]) -> int:
    """Appends the arrays, in the order of the signature; how many bytes they take."""
    size = 0
    for tensor in tensors:
        array = np.asarray(arrays[tensor.name], DTYPES[tensor.dtype])
        data: Any
        if array.dtype.hasobject:
            data = _strings(array)
        elif array.nbytes > _COPIED and array.flags.c_contiguous:
            data = memoryview(cast(Any, array)).cast("B")
        else:
            data = array.tobytes()
        length = len(data)
        pieces += (_SHAPE.pack(array.ndim, length), struct.pack(f"={array.ndim}q", *array.shape), data)
        size += _SHAPE.size + 8 * array.ndim + length
        if rest := -length % 8:
            pieces.append(bytes(rest))
            size += rest
    return size


def _take(body: memoryview, at: int, tensors: Sequence[Tensor]) -> dict[str, npt.NDArray[Any]]:
    found: dict[str, npt.NDArray[Any]] = {}
    for tensor in tensors:
        dtype = DTYPES[tensor.dtype]
        ndim, length = _SHAPE.unpack_from(body, at)
        at += _SHAPE.size
        shape = struct.unpack_from(f"={ndim}q", body, at)
        at += 8 * ndim
        if dtype.hasobject:
            array = _read_strings(body[at : at + length])
        else:
            array = np.frombuffer(body, dtype, length // dtype.itemsize, at)
        found[tensor.name] = array.reshape(shape)
        at += length + -length % 8
    return found


def _strings(array: npt.NDArray[Any]) -> bytes:
    """Each as its length, doubled, plus one where it is bytes and no text."""
    parts: list[bytes] = []
    for value in array.ravel().tolist():
        raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        parts += (_LENGTH.pack(len(raw) << 1 | isinstance(value, bytes)), raw)
    return b"".join(parts)


def _read_strings(data: memoryview) -> npt.NDArray[Any]:
    found: list[str | bytes] = []
    at = 0
    while at < len(data):
        (marked,) = _LENGTH.unpack_from(data, at)
        raw = bytes(data[at + _LENGTH.size : at + _LENGTH.size + (marked >> 1)])
        found.append(raw if marked & 1 else raw.decode("utf-8", "surrogatepass"))
        at += _LENGTH.size + len(raw)
    array = np.empty(len(found), object)
    array[:] = found
    return array
