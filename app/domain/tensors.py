"""Arrays against a signature: what a tensor must be, and the one sentence that says how an array differs from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.records import Signature, Tensor
from app.errors import BadTensor

# numpy has no bfloat16 of its own; such a tensor cannot be given here.
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name)
    for name in (
        "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
        "float16", "float32", "float64",
    )
} | {"string": np.dtype(object)}  # fmt: skip


def expected(tensor: Tensor) -> str:
    """`float32 [-1, 1, 28, 28]`: what `mismatch` holds an array against; -1 is any size."""
    return f"{tensor.dtype} {list(tensor.shape)}"


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
        array = arrays[tensor.name]
        if wrong := mismatch(tensor, array):
            raise BadTensor(wrong, hint=_hint(signature))
        if tensor.batch_axis is not None and tensor.batch_axis < array.ndim:
            found.setdefault(array.shape[tensor.batch_axis], tensor.name)
    if len(found) > 1 and signature.batched:
        told = ", ".join(f"{name!r} has {rows}" for rows, name in found.items())
        raise BadTensor(f"every input must have the same number of rows: {told}", hint=_hint(signature))
    return next(iter(found), 1) if signature.batched else 1


def wrong_names(signature: Signature, given: set[str]) -> BadTensor:
    """The error for inputs that are missing or unknown."""
    names = {t.name for t in signature.inputs}
    missing, unknown = sorted(names - given), sorted(given - names)
    parts = [f"missing {missing}"] if missing else []
    parts += [f"unknown {unknown[:8]}"] if unknown else []
    return BadTensor(f"the inputs do not fit the model: {', '.join(parts)}", hint=_hint(signature))


def _hint(signature: Signature) -> str:
    return "the model takes " + "; ".join(f"{t.name}: {expected(t)}" for t in signature.inputs)
