"""Runs a session of ONNX Runtime that takes or gives bfloat16, which it exchanges with nobody as numpy's arrays."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from app.domain.bfloat16 import narrowed, widened
from app.errors import Unprocessable

_BFLOAT16 = "tensor(bfloat16)"
_CODE = 16  # onnx.TensorProto.BFLOAT16

# (names of outputs, inputs by name, the library's RunOptions or nothing) → the outputs.
Run = Callable[..., list[npt.NDArray[Any]]]


def runner(ort: Any, session: Any) -> Run:
    """`session.run`, but that tensors of bfloat16 are given and answered as float32. Raises Unprocessable for a model
    that takes strings beside them."""
    inputs = {i.name for i in session.get_inputs() if i.type == _BFLOAT16}
    if not inputs and all(o.type != _BFLOAT16 for o in session.get_outputs()):
        return cast(Run, session.run)
    if any(i.type == "tensor(string)" for i in session.get_inputs()):
        raise Unprocessable(
            "ONNX Runtime runs no model here that takes strings and has tensors of bfloat16",
            code="unsupported_dtype",
            hint="export it with inputs and outputs of float32",
        )

    def value(name: str, array: npt.NDArray[Any]) -> Any:
        if name in inputs:
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(narrowed(array), _CODE)
        return ort.OrtValue.ortvalue_from_numpy(array)

    def run(
        names: Sequence[str] | None, given: Mapping[str, npt.NDArray[Any]], options: Any = None
    ) -> list[npt.NDArray[Any]]:
        values = {name: value(name, array) for name, array in given.items()}
        return [_array(found) for found in session.run_with_ort_values(names, values, options)]

    return run


def _array(value: Any) -> npt.NDArray[Any]:
    if value.data_type() != _BFLOAT16:
        return np.asarray(value.numpy())
    shape = tuple(value.shape())
    if not (count := math.prod(shape)):
        return np.zeros(shape, np.float32)
    bits = np.frombuffer((ctypes.c_uint16 * count).from_address(value.data_ptr()), np.uint16)
    return widened(bits).reshape(shape)
