"""The values of one input of the Open Inference Protocol: lists of JSON, or the bytes of strings → one array."""

from __future__ import annotations

import struct
from array import array
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.tensors import all_finite
from app.errors import BadRequest, BadTensor
from app.serving import json_tensors
from app.serving.oip import BINARY_ONLY, Form, Taken
from app.serving.oip_json import Values


def strings(taken: Taken, data: bytes, count: int) -> npt.NDArray[Any]:
    """BYTES: each element is its length (4 bytes, little-endian), then itself. count: how many. Raises BadRequest."""
    if 4 * count > len(data):
        raise BadRequest(
            f"input {taken.name!r}: {count} elements are at least {4 * count} bytes, and its binary_data_size is "
            f"{len(data)}",
            code="bad_tensor",
        )
    found = np.empty(count, object)
    at = 0
    for number in range(count):
        end = at + 4
        if end <= len(data):
            end += struct.unpack_from("<I", data, at)[0]
        if end > len(data):
            raise BadRequest(
                f"input {taken.name!r}: element {number} of {count} ends {end - len(data)} bytes after the tensor does",
                code="bad_tensor",
                hint="each element of BYTES is its length in 4 bytes, little-endian, then itself",
            )
        try:
            found[number] = data[at + 4 : end].decode()
        except UnicodeDecodeError:
            raise BadRequest(
                f"input {taken.name!r}: element {number} is no UTF-8", code="bad_tensor", hint="the model takes text"
            ) from None
        at = end
    if at != len(data):
        raise BadRequest(
            f"input {taken.name!r}: {count} elements end after {at} bytes, and its binary_data_size is {len(data)}",
            code="bad_tensor",
        )
    return found


def from_json(
    taken: Taken, shape: tuple[int, ...], count: int, entry: dict[str, Any], head: bytes, form: Form
) -> npt.NDArray[Any]:
    """Values in row-major order, in one flat list or nested. head: the JSON that they stand in. Raises BadRequest."""
    data = entry.get("data")
    if taken.datatype in BINARY_ONLY:
        raise wrong(taken, f"JSON has no numbers of {taken.datatype}: send it as binary, with binary_data_size", form)
    if isinstance(data, Values):
        if (found := data.array(taken.wire, shape)) is not None:
            return found
        data = data.read.as_list()
    if not isinstance(data, list):
        raise wrong(taken, "its data must be a list" if "data" in entry else "it has no data", form)
    sizes, level = [len(data)], data
    while level and type(level[0]) is list:
        lengths = set(map(len, level)) if set(map(type, level)) == {list} else set()
        if len(lengths) != 1:
            raise wrong(taken, "its data is ragged", form)
        sizes.append(lengths.pop())
        level = list(chain.from_iterable(level))
    if len(level) != count or len(sizes) > max(1, len(shape)) or (len(sizes) == len(shape) and sizes != list(shape)):
        told = f"{sizes[0]} values" if len(sizes) == 1 else f"lists of {sizes}"
        raise wrong(taken, f"its shape is {list(shape)}, which is {count} values, and its data {told}", form)
    try:
        return _values(taken, level, head).reshape(shape)
    except BadTensor as problem:
        hint = f"data are the values in row-major order, in one flat list or nested; {form.takes}"
        raise BadRequest(problem.detail, code=problem.code, hint=hint) from None


def _values(taken: Taken, values: list[Any], head: bytes) -> npt.NDArray[Any]:
    dtype = taken.wire
    if dtype.kind in "iuf" and b"true" not in head and b"false" not in head:
        # An array takes numbers alone, and booleans, of which there are none: what each one is need not be asked.
        try:
            found = np.frombuffer(array(dtype.char, values), dtype)
        except (TypeError, OverflowError):
            pass
        else:
            if all_finite(found):
                return found
    # Slower, and says what is wrong with which value.
    return json_tensors.flat(taken.tensor, values, set(map(type, values)))


def wrong(taken: Taken, what: str, form: Form) -> BadRequest:
    return BadRequest(f"input {taken.name!r} must be {taken.said}: {what}", code="bad_tensor", hint=form.takes)
