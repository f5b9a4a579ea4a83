"""JSON's lists of numbers → arrays, by simdjson: without an object of Python's for every number.

Whatever is wrong or unusual is None here, and left to `json_tensors`, which also says what is wrong with it.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from app.domain.records import Signature, Tensor
from app.domain.tensors import DTYPES
from app.errors import BadTensor
from app.serving.json_tensors import array_of

try:
    from simdjson import Array, Object, Parser
except (ImportError, RuntimeError):  # no wheel for this Python or machine: all bodies go the slower way
    Parser = None  # type: ignore[assignment,misc]

__all__ = ["Array", "Given", "Object", "Parser", "numbers", "read", "sizes"]
_SMALL = 8192  # values; a larger product is spread over threads that the engine wants


class Given(NamedTuple):
    """A body of /predict. outputs, top_k: as they were given, or None."""

    inputs: dict[str, npt.NDArray[Any]]
    outputs: list[str] | None
    top_k: Any


def read(body: bytes, signature: Signature) -> Given | None:
    """The arrays, each as its tensor wants it, of a body in which everything is right; None for any other body.

    simdjson reads the same JSON as orjson, but for a byte order mark and big integers, which end as None.
    """
    if Parser is None or body[:1] != b"{":
        return None
    try:
        # A parser of its own: it must not be shared with a thread, and keeps as much memory as its largest body needed.
        document: Any = Parser().parse(body)
        return _read(body, document, signature)
    except (BadTensor, ValueError, TypeError, KeyError, IndexError, RuntimeError, MemoryError):
        return None


def _read(body: bytes, document: Any, signature: Signature) -> Given | None:
    given, outputs, top_k = document["inputs"], None, None
    strings = fields = len(document)  # strings and lists: those that are known to be in the body
    lists = 0
    if fields > 1:
        outputs, top_k = document.get("outputs"), document.get("top_k")
        if fields != 1 + (outputs is not None) + (top_k is not None) or type(top_k) not in (int, type(None)):
            return None
        if outputs is not None:
            outputs = outputs.as_list() if type(outputs) is Array else [None]
            if set(map(type, outputs)) != {str}:
                return None
            strings, lists = strings + len(outputs), 1
    if type(given) is Object:
        strings += len(given)
    else:
        given = {signature.inputs[0].name: given}
    if len(given) != len(signature.inputs):
        return None
    inputs: dict[str, npt.NDArray[Any]] = {}
    for tensor in signature.inputs:
        value = given[tensor.name]
        if not tensor.shape and type(value) in (int, float):
            inputs[tensor.name] = array_of(tensor, value)
            continue
        found = _array(tensor, value)
        if found is None:
            return None
        inputs[tensor.name], more = found
        lists += more
    # What has been seen has so many lists and strings. With one more of them somewhere, the body holds a name twice, or
    # a list inside of what was taken for the innermost one.
    if body.count(b"[") != lists or _holds_more(body, b'"', 2 * strings):
        return None
    return Given(inputs, outputs, top_k)


def _holds_more(body: bytes, letter: bytes, times: int) -> bool:
    """Whether a body holds a letter more often than so many times. bytes.count looks at every byte, find does not."""
    at = -1
    for _ in range(times + 1):
        at = body.find(letter, at + 1)
        if at < 0:
            return False
    return True


def _array(tensor: Tensor, values: Any) -> tuple[npt.NDArray[Any], int] | None:
    """The array, and how many lists it was."""
    wanted, dtype = tensor.shape, DTYPES[tensor.dtype]
    if type(values) is not Array or not wanted:
        return None
    # Refuses everything but numbers, and lists of them.
    flat = numbers(values, dtype)
    if flat is None:
        return None
    shape, lists = sizes(values)
    if len(shape) != len(wanted) or not flat.size or flat.size != math.prod(shape):
        return None
    for size, want in zip(shape, wanted, strict=True):
        if size != want and want != -1:
            return None
    return flat.reshape(shape), lists


def numbers(values: Array, dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
    """All numbers of nested lists in one row, each as `dtype`; None where one of them is beyond it.

    Raises TypeError and ValueError for what is no number, and (for an integer dtype) no integer.
    """
    if dtype.kind == "f":
        flat = np.frombuffer(values.as_buffer(of_type="d"), np.float64)
        if dtype.itemsize == 8:
            return flat
        return flat.astype(dtype) if _within(flat, _LARGEST[dtype.itemsize]) else None
    if dtype.kind not in "iu":
        return None
    if dtype == np.uint64:
        return np.frombuffer(values.as_buffer(of_type="u"), np.uint64)
    whole = np.frombuffer(values.as_buffer(of_type="i"), np.int64)
    if dtype == np.int64:
        return whole
    bounds = np.iinfo(dtype)
    return whole.astype(dtype) if bounds.min <= whole.min() and whole.max() <= bounds.max else None


_LARGEST = {2: float(np.finfo(np.float16).max), 4: float(np.finfo(np.float32).max)}


def _within(array: npt.NDArray[np.float64], largest: float) -> bool:
    """Whether no number is beyond the largest one. The sum of all squares says so at a third of the price, mostly."""
    if array.size <= _SMALL and np.vdot(array, array) < largest * largest:
        return True
    return bool(array.max() <= largest and -largest <= array.min())


def sizes(values: Any) -> tuple[list[int], int]:
    """The sizes of lists in lists, as deep as the first of them go, and how many lists that is.

    Raises TypeError and ValueError where lists of one depth differ. What is in the innermost ones is not looked at: see
    `read` for how to find a list there.
    """
    level: Any = (values,)
    first, length, lists = values, len(values), 1
    shape = [length]
    while length and type(inner := first[0]) is Array:
        level = first if len(level) == 1 else list(chain.from_iterable(level))
        (length,) = set(map(len, level))
        lists += len(level)
        shape.append(length)
        first = inner
    return shape, lists
