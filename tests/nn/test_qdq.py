"""What is read off an ONNX graph before and after it is quantized."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from workers.nn import qdq


def test_a_layer_whose_weights_were_transposed_is_called_by_its_bias() -> None:
    """The exporter writes a linear layer over more than rows as MatMul and Add, and its weights lose their name."""
    arrays = {
        "val_0": np.zeros((4, 4)), "blocks.0.qkv.bias": np.zeros(4), "val_1": np.zeros((4, 4)),
        "head.weight": np.zeros((2, 4)), "head.bias": np.zeros(2),
    }  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "val_0"], ["a"], name="node_MatMul_1"),
        helper.make_node("Add", ["a", "blocks.0.qkv.bias"], ["b"], name="node_linear"),
        helper.make_node("MatMul", ["b", "val_1"], ["c"], name="node_MatMul_3"),
        helper.make_node("MatMul", ["c", "b"], ["d"], name="node_scores"),
        helper.make_node("Gemm", ["d", "head.weight", "head.bias"], ["y"], name="node_head", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4, 2])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )  # fmt: skip
    assert qdq.labels(helper.make_model(graph)) == {
        "node_MatMul_1": "blocks.0.qkv",
        "node_MatMul_3": "node_MatMul_3",  # nothing in the file says
        "node_scores": "node_scores",
        "node_head": "head",
    }
