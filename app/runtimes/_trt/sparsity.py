"""Which layers have 2:4 weights: of four in a row along what goes in, at most two are not zero. Tensor cores of Ampere
and newer leave the zeros out (Mishra et al. 2021, "Accelerating sparse deep neural networks")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_KEPT, _OF = 2, 4


@dataclass(frozen=True)
class Sparse:
    """layers: with 2:4 weights. of: with weights of their own."""

    layers: int
    of: int


def sparse_layers(graph: Path) -> Sparse:
    """graph: ONNX in the precision of the build, with its weights inside; of another file it tells nothing."""
    import onnx

    try:
        model = onnx.load(graph)
    except Exception:  # protobuf's own: TensorRT says what is wrong with it
        return Sparse(0, 0)
    weights = {t.name: t for t in model.graph.initializer}
    made = {out: node for node in model.graph.node for out in node.output}
    found = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        name = node.input[1]
        while name not in weights and (before := made.get(name)) is not None:
            if before.op_type not in ("DequantizeLinear", "Cast", "Identity"):
                break
            name = before.input[0]
        if name in weights and len(weights[name].dims) > 1:
            found.append(_is_sparse(onnx.numpy_helper.to_array(weights[name]), _input_axis(node)))
    return Sparse(sum(found), len(found))


def _input_axis(node: Any) -> int:
    said: Mapping[str, int] = {a.name: a.i for a in node.attribute}
    return 1 if node.op_type == "Conv" or said.get("transB") else -2


def _is_sparse(weight: npt.NDArray[Any], axis: int) -> bool:
    if weight.shape[axis] % _OF:
        return False
    rows = np.moveaxis(weight != 0, axis, -1).reshape(-1, _OF)
    return bool((rows.sum(axis=1) <= _KEPT).all())
