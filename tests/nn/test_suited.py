"""What single runtimes need of graphs with Q/DQ nodes: written otherwise, and the same."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from workers.nn import suited


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
    suited.unsigned(model)
    onnx.checker.check_model(model)
    assert {t.data_type for t in model.graph.initializer if t.dims == [] and t.data_type != TensorProto.FLOAT} == {kind}
    x = np.random.default_rng(0).normal(0, 2, (50, 3)).astype(np.float32)
    one, other = (onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": x}) for m in (plain, model))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("opset", [17, 18])
def test_a_mean_before_scales_by_channel_is_right_in_openvino(opset: int) -> None:
    import onnxruntime
    import openvino

    rng = np.random.default_rng(0)
    values = [
        numpy_helper.from_array(rng.uniform(0.1, 3, (1, 16)).astype(np.float32), "scales"),
        numpy_helper.from_array(np.float32(0.02), "scale"),
        numpy_helper.from_array(np.int8(0), "zero"),
        numpy_helper.from_array(rng.integers(-127, 128, (16, 4)).astype(np.int8), "weight"),
        numpy_helper.from_array(np.asarray([1], np.int64), "axes"),
    ]
    by: dict[str, Any] = {"axes": [1]} if opset < 18 else {}
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"][: 1 + (opset >= 18)], ["mean"], "mean", keepdims=0, **by),
        helper.make_node("Mul", ["mean", "scales"], ["a"], "smooth"),
        helper.make_node("QuantizeLinear", ["a", "scale", "zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["b"], "d"),
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["w"], "dw"),
        helper.make_node("MatMul", ["b", "w"], ["y"], "head"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [None, 5, 16]), ("y", [None, 4]))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    x = rng.standard_normal((8, 5, 16)).astype(np.float32)
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    suited.kept_axes(model)
    onnx.checker.check_model(model)
    core = openvino.Core()
    read = core.read_model(model.SerializeToString())
    found = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)
    assert np.abs(found[0] - wanted).max() <= 0.02 * 127 * 0.02 * 1.01  # one step of the input's rounding
    assert np.array_equal(onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0], wanted)
