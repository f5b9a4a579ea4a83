"""Arrays against a signature: what a tensor must be, and the one sentence that says how an array differs from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.records import Signature, Tensor
from app.errors import BadTensor

_SMALL = 8192  # values; a larger product is spread over threads that the engine wants
# What an array that is held here has: float32 for bfloat16, which numpy lacks (see bfloat16.py).
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name)
    for name in (
        "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
        "float16", "float32", "float64",
    )
} | {"bfloat16": np.dtype(np.float32), "string": np.dtype(object)}  # fmt: skip


def expected(tensor: Tensor) -> str:
    """`float32 [-1, 1, 28, 28]`: what `mismatch` holds an array against; -1 is any size."""
    dtype = "bfloat16 (as float32)" if tensor.dtype == "bfloat16" else tensor.dtype
    return f"{dtype} {list(tensor.shape)}"


def mismatch(tensor: Tensor, array: npt.NDArray[Any]) -> str | None:
    """How an array differs from its tensor in dtype or shape, or None."""
    if array.dtype is not DTYPES.get(tensor.dtype) and array.dtype != DTYPES.get(tensor.dtype):
        found = "string" if array.dtype.hasobject else array.dtype.name
        return f"input {tensor.name!r} must be {expected(tensor)}, and is {found} {list(array.shape)}"
    return misfit(tensor, array.shape)


def misfit(tensor: Tensor, shape: tuple[int, ...]) -> str | None:
    """How a shape differs from its tensor's, or None."""
    wanted = tensor.shape
    if len(shape) == len(wanted) and all(a == w or (w == -1 and a > 0) for a, w in zip(shape, wanted, strict=True)):
        return None
    said = f"input {tensor.name!r} must be {expected(tensor)}, and is {list(shape)}"
    if tensor.batch_axis == 0 and len(shape) == len(wanted) - 1:
        one = (1, *shape)
        if all(a == w or w == -1 for a, w in zip(one, wanted, strict=True)):
            return f"{said}: the batch axis is missing; give one row as {list(one)}"
    if 0 in shape:
        return f"{said}: it is empty"
    return said


def check(signature: Signature, arrays: Mapping[str, npt.NDArray[Any]]) -> int:
    """The rows of a batch (1 where the signature has none). Raises BadTensor for a wrong name, dtype or shape."""
    if len(arrays) != len(signature.inputs) or any(t.name not in arrays for t in signature.inputs):
        raise wrong_names(signature, set(arrays))
    found: dict[int, str] = {}
    for tensor in signature.inputs:
        array = arrays[name := tensor.name]
        if wrong := mismatch(tensor, array):
            raise BadTensor(wrong, hint=_hint(signature), loc=("inputs", name))
        if tensor.batch_axis is not None and tensor.batch_axis < array.ndim:
            found.setdefault(array.shape[tensor.batch_axis], name)
    if len(found) > 1 and signature.batched:
        told = ", ".join(f"{name!r} has {rows}" for rows, name in found.items())
        raise BadTensor(f"every input must have the same number of rows: {told}", hint=_hint(signature))
    return next(iter(found), 1) if signature.batched else 1


def all_finite(array: npt.NDArray[Any]) -> bool:
    """Whether a float array holds neither NaN nor infinity; true of any other."""
    if array.dtype.kind != "f":
        return True
    # The scalar product of a small array with itself is a third of the price; where it overflows, each value is asked.
    if array.size <= _SMALL and array.dtype.itemsize >= 4 and math.isfinite(np.vdot(array, array)):
        return True
    return bool(np.isfinite(array).all())


def checker(signature: Signature) -> Callable[[Mapping[str, npt.NDArray[Any]]], int]:
    """`check` for one signature, several times as fast for arrays that fit a batched one whose other dimensions are
    fixed. The rest, and whatever does not fit, goes to `check`, which says what is wrong."""
    if not signature.batched or any(-1 in t.shape[1:] or t.dtype not in DTYPES for t in signature.inputs):
        return lambda arrays: check(signature, arrays)
    wanted = [(t.name, DTYPES[t.dtype], t.shape[1:]) for t in signature.inputs]
    count = len(wanted)

    def fits(arrays: Mapping[str, npt.NDArray[Any]]) -> int:
        if len(arrays) == count:
            rows = 0
            for name, dtype, inner in wanted:
                array = arrays.get(name)
                if array is None or array.dtype != dtype:
                    break
                shape = array.shape
                if not shape or shape[1:] != inner or not shape[0] or (rows and shape[0] != rows):
                    break
                rows = shape[0]
            else:
                return rows
        return check(signature, arrays)

    return fits


def wrong_names(signature: Signature, given: set[str]) -> BadTensor:
    """The error for inputs that are missing or unknown."""
    names = {t.name for t in signature.inputs}
    missing, unknown = sorted(names - given), sorted(given - names)
    parts = [f"missing {missing}"] if missing else []
    parts += [f"unknown {unknown[:8]}"] if unknown else []
    return BadTensor(f"the inputs do not fit the model: {', '.join(parts)}", hint=_hint(signature))


def _hint(signature: Signature) -> str:
    return "the model takes " + "; ".join(f"{t.name}: {expected(t)}" for t in signature.inputs)
