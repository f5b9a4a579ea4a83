"""Graphs with Q/DQ nodes: int8 activations as uint8 where OpenVINO needs it."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from workers.nn import qdq


def quantized(before: str) -> Any:
    """x → `before` → Q → DQ → y, in int8 with a zero point of 0; and x → Q → DQ → z."""
    nodes = [
        helper.make_node(before, ["x"], ["a"]),
        helper.make_node("QuantizeLinear", ["a", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["p"]),
        helper.make_node("DequantizeLinear", ["p", "scale", "zero"], ["z"]),
    ]
    ends = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 3]) for n in "xyz"}
    values = [numpy_helper.from_array(np.float32(0.02), "scale"), numpy_helper.from_array(np.int8(0), "zero")]
    graph = helper.make_graph(nodes, "g", [ends["x"]], [ends["y"], ends["z"]], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("before", "kind"), [("Relu", TensorProto.UINT8), ("Tanh", TensorProto.INT8)])
def test_int8_behind_a_relu_is_unsigned_and_the_same(before: str, kind: int) -> None:
    import onnxruntime

    plain, model = quantized(before), quantized(before)
    qdq.unsigned(model)
    onnx.checker.check_model(model)
    assert {t.data_type for t in model.graph.initializer if t.dims == [] and t.data_type != TensorProto.FLOAT} == {kind}
    x = np.random.default_rng(0).normal(0, 2, (50, 3)).astype(np.float32)
    one, other = (onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": x}) for m in (plain, model))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
