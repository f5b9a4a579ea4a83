"""What single runtimes need of a graph with Q/DQ nodes: the same numbers, written so that they compute them rightly."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from app.runtimes._graphs import drop_unused, opset, users_of
from workers.nn.qdq import LEAST_OPSET

_NOT_NEGATIVE = frozenset(("Relu", "Sigmoid", "HardSigmoid", "Softmax"))


def symmetric(model: Any) -> None:
    """Makes every scale's zero point 0 of int8, as TensorRT needs it: an unsigned range of 0…255 becomes the half of
    -127…127 that is above zero, at half the resolution. In place."""
    graph = model.graph
    values = {t.name: t for t in graph.initializer}
    changed: dict[str, str] = {}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
            continue
        if node.input[0] in values:
            continue  # weights: NNCF makes them symmetric
        scale, zero = (numpy_helper.to_array(values[n]) for n in node.input[1:3])
        if zero.dtype == np.int8 and not zero.any():
            continue
        name = f"{node.input[1]}/{node.input[2]}/symmetric"
        if name not in changed:
            lowest, highest = (0, 255) if zero.dtype == np.uint8 else (-128, 127)
            reach = np.maximum(highest - zero.astype(np.float64), zero.astype(np.float64) - lowest)
            graph.initializer.append(numpy_helper.from_array((scale * reach / 127).astype(scale.dtype), name))
            graph.initializer.append(numpy_helper.from_array(np.zeros_like(zero, np.int8), f"{name}/zero"))
            changed[name] = f"{name}/zero"
        node.input[1], node.input[2] = name, changed[name]
    drop_unused(graph)


def unsigned(model: Any) -> None:
    """Writes int8 activations as uint8 with a zero point moved by 128, which is the same to the last bit, where one of
    them comes out of a ReLU: a skip connection gave it the range of something signed. OpenVINO (2026.4) computes a
    convolution behind such an int8 wrongly, by a tenth of its outputs. In place."""
    graph = model.graph
    values = {t.name: t for t in graph.initializer}
    made = {out: node.op_type for node in graph.node for out in node.output}
    nodes = [
        n
        for n in graph.node
        if n.op_type in ("QuantizeLinear", "DequantizeLinear")
        and n.input[0] not in values  # weights stay signed
        and len(n.input) > 2
        and n.input[2] in values
        and values[n.input[2]].data_type == onnx.TensorProto.INT8
    ]
    if not any(n.op_type == "QuantizeLinear" and made.get(n.input[0]) in _NOT_NEGATIVE for n in nodes):
        return
    for name in sorted({n.input[2] for n in nodes}):
        zero = numpy_helper.to_array(values[name]).astype(np.int16) + 128
        graph.initializer.append(numpy_helper.from_array(zero.astype(np.uint8), f"{name}/unsigned"))
    for node in nodes:
        node.input[2] = f"{node.input[2]}/unsigned"
    drop_unused(graph)


def kept_axes(model: Any) -> None:
    """A reduction whose result is scaled by channel or quantized keeps the axes that it reduces, and a Squeeze drops
    them: OpenVINO (2026.4) fuses what follows into the reduction, and scales along the wrong axis where they are gone:
    a mean over time before SmoothQuant's scales came out wrong by more than its own size. In place."""
    graph, users = model.graph, users_of(model.graph)
    if opset(model) < LEAST_OPSET:  # where Squeeze has its axes elsewhere
        return
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        graph.node.append(node)
        said = {a.name: a for a in node.attribute}
        axes = node.input[1] if len(node.input) > 1 else ""
        if not node.op_type.startswith("Reduce") or not (axes or "axes" in said):
            continue
        if "keepdims" not in said or said["keepdims"].i:
            continue
        if not any(user.op_type in ("Mul", "QuantizeLinear") for user in users.get(node.output[0], ())):
            continue
        if not axes:
            axes = f"{node.name}/axes"
            graph.initializer.append(numpy_helper.from_array(np.asarray(said["axes"].ints, np.int64), axes))
        made = graph.node[-1]
        out, made.output[0] = made.output[0], f"{node.name}/kept"
        next(a for a in made.attribute if a.name == "keepdims").i = 1
        graph.node.append(onnx.helper.make_node("Squeeze", [made.output[0], axes], [out], f"{node.name}/squeezed"))
