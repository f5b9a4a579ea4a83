"""How many multiplications one row takes: of a torch network by its operators, of an ONNX graph by its shapes."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of the shapes."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


# Operators that torch's own table lacks.
_UNKNOWN_TO_TORCH = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def macs(module: nn.Module, one_row: tuple[torch.Tensor, ...]) -> int | None:
    """Multiply-accumulates of convolutions and matrix products for these inputs; None where it does not run on them."""
    module.eval()
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole layer of a transformer is counted as none
    try:
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_UNKNOWN_TO_TORCH) as counter:
            module(*one_row)
    except Exception:  # whatever a network raises on a batch of one: then the figure is unknown, and nothing else
        return None
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops()) // 2


def onnx_macs(path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> int | None:
    """The same of an ONNX file's Conv, ConvTranspose, Gemm and MatMul, at batch 1.

    shapes: input name → concrete shape. None where a size stays unknown or the graph has subgraphs or recurrent layers.
    """
    import onnx

    model = onnx.load(str(path))
    for given in model.graph.input:
        dims = given.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if shapes and given.name in shapes and axis < len(shapes[given.name]):
                dim.dim_value = shapes[given.name][axis]
            elif axis == 0 and not dim.dim_value:
                dim.dim_value = 1
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # a graph that onnx cannot follow has no known size
        return None
    sizes = {i.name: tuple(i.dims) for i in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        sizes.setdefault(value.name, tuple(dims) if all(dims) else ())
    total = 0
    for node in graph.node:
        found = _node_macs(node, sizes)
        if found is None:
            return None
        total += found
    return total


def _node_macs(node: Any, sizes: Mapping[str, tuple[int, ...]]) -> int | None:
    if node.op_type in ("If", "Loop", "Scan", "LSTM", "GRU", "RNN", "Attention") or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    x, w, out = sizes.get(node.input[0]), sizes.get(node.input[1]), sizes.get(node.output[0])
    if not x or not w or not out:
        return None
    if node.op_type == "Conv":  # the weight is (out, in ÷ groups, …)
        return prod(out) * prod(w[1:])
    if node.op_type == "ConvTranspose":  # the weight is (in, out ÷ groups, …)
        return prod(x) * prod(w[1:])
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return prod(out) * x[0 if transposed else -1]
    return prod(out) * x[-1]


def onnx_parameters(path: Path) -> int:
    """How many floating-point numbers an ONNX file's initializers hold."""
    return sum(prod(t.dims) for t in _floats(path))


def onnx_sparsity(path: Path) -> dict[str, Any]:
    """Zeros in an ONNX file, counted: {zeros, weights, sparsity} over the initializers of two axes or more."""
    from onnx import numpy_helper

    zeros = weights = 0
    for tensor in _floats(path):
        if len(tensor.dims) >= 2:
            array = numpy_helper.to_array(tensor)
            zeros += int((array == 0).sum())
            weights += array.size
    return {"zeros": zeros, "weights": weights, "sparsity": zeros / weights if weights else 0.0}


def _floats(path: Path) -> list[Any]:
    import onnx

    kinds = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    return [t for t in onnx.load(str(path)).graph.initializer if t.data_type in kinds]
