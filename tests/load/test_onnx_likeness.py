"""What two ONNX files of the same network have in common."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from workers.load.onnx_likeness import architecture


def network(seed: int = 0, width: int = 3, function: str = "Relu", constant: bool = False) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    weight = numpy_helper.from_array(rng.random((4, width), dtype=np.float32), "w")
    shape = numpy_helper.from_array(np.array([-1, width], np.int64), "shape")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node(function, ["a"], ["b"]),
        helper.make_node("Reshape", ["b", "shape"], ["y"]),
    ]
    if constant:  # some exporters write weights among the nodes
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, f"graph {seed}", [tensor("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [tensor("y", onnx.TensorProto.FLOAT, ["n", width])], [shape] if constant else [weight, shape],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.doc_string = model.producer_version = str(seed)
    return model


def test_weights_and_remarks_make_no_difference() -> None:
    assert architecture(network(0)) == architecture(network(1))
    assert architecture(network(0, constant=True)) == architecture(network(1, constant=True))


def test_layers_shapes_and_operators_do() -> None:
    others = [network(), network(width=5), network(function="Sigmoid"), network(constant=True)]
    newer = network()
    newer.opset_import[0].version = 19
    other_shape = network()
    other_shape.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.array([-1, 1], np.int64), "shape"))
    found = [architecture(model) for model in (*others, newer, other_shape)]
    assert len(set(found)) == len(found)


def test_the_model_is_left_as_it_was() -> None:
    model = network()
    before = model.SerializeToString(deterministic=True)
    architecture(model)
    assert model.SerializeToString(deterministic=True) == before
