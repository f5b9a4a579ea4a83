"""A request of the Open Inference Protocol: its JSON → a dict, whose lists of numbers become arrays once wanted."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from app.serving.json_numbers import Array, Object, Parser, numbers, sizes

_SMALL = 512  # bytes; orjson has read them sooner


class Values(NamedTuple):
    """The data of an input as it was read, of which nothing has become an object of Python's. sizes: of the lists."""

    read: Array
    sizes: list[int]

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any] | None:
        """Numbers in row-major order, in one flat list or nested, as one array; None where anything is not right."""
        if len(self.sizes) > max(1, len(shape)) or (len(self.sizes) == len(shape) and self.sizes != list(shape)):
            return None
        try:
            found = numbers(self.read, dtype)
        except (TypeError, ValueError):
            return None
        if found is None or found.size != math.prod(self.sizes) or found.size != math.prod(shape):
            return None
        return found.reshape(shape)


def loads(head: bytes) -> Any:
    """As orjson.loads, but that the data of inputs may be `Values`. Raises orjson.JSONDecodeError."""
    if Parser is not None and len(head) > _SMALL and head[:1] == b"{":
        try:
            return _read(head, Parser().parse(head))
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError, MemoryError):
            pass
    return orjson.loads(head)


def _read(head: bytes, document: Any) -> dict[str, Any]:
    """Raises ValueError, TypeError, KeyError or RuntimeError for what is unusual."""
    if type(document["inputs"]) is not Array:
        raise TypeError("inputs is no list")
    given = {name: None if name == "inputs" else _plain(document[name]) for name in document}
    given["inputs"] = inputs = []
    lists = 0
    for entry in document["inputs"]:
        if type(entry) is not Object:
            raise TypeError("an input is no object")
        told = {}
        for name in entry:
            value = entry[name]
            if name == "data" and type(value) is Array:
                shape, more = sizes(value)
                told[name], lists = Values(value, shape), lists + more
            else:
                told[name] = _plain(value)
        if len(told) != len(entry):
            raise ValueError("a name twice")
        inputs.append(told)
    # With one more list somewhere, it is inside of what was taken for the innermost one of the data.
    if len(given) != len(document) or head.count(b"[") != lists + _lists(given):
        raise ValueError("a name twice, or lists of different depths")
    return given


def _plain(value: Any) -> Any:
    if type(value) is Array:
        return value.as_list()
    return value.as_dict() if type(value) is Object else value


def _lists(value: Any) -> int:
    """How many lists there are in a value, itself among them."""
    if type(value) is dict:
        return sum(map(_lists, value.values()))
    return 1 + sum(map(_lists, value)) if type(value) is list else 0
