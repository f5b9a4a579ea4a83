"""ONNX files: what is read off them, and what is refused by the name of the operator, the version or the other file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.domain.records import Signature
from app.errors import Problem, Unprocessable
from load.test_upload import load


def model(**changes: Any) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.array([[1, 0], [0, 2], [3, 0]], np.float32), "w")
    nodes = changes.get("nodes") or [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        changes.get("inputs") or [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [weight],
    )
    made = helper.make_model(graph, opset_imports=changes.get("opsets") or [helper.make_opsetid("", 17)])
    made.ir_version = changes.get("ir", 8)
    return made


def test_onnx(tmp_path: Path) -> None:
    found = load(tmp_path, model().SerializeToString())
    tensor = {"name": "x", "dtype": "float32", "shape": (-1, 3), "batch_axis": 0}
    assert found["signature"]["inputs"] == (tensor,)
    assert (found["format"], found["parameters"], found["trainable"]) == ("onnx", 6, False)
    assert found["sparsity"] == 0.5
    assert found["layer_sparsity"] == {"w": 0.5}
    assert Signature.model_validate(found["signature"]).batched
    listed = [helper.make_tensor_value_info(*a) for a in (("x", 1, [4, 3]), ("w", 1, [3, 2]))]
    fixed = load(tmp_path, model(inputs=listed).SerializeToString())
    assert [(t["name"], t["shape"], t["batch_axis"]) for t in fixed["signature"]["inputs"]] == [("x", (4, 3), None)]


def external() -> onnx.ModelProto:
    made = model()
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return made


def nan() -> onnx.ModelProto:
    made = model()
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((3, 2), np.nan, np.float32), "w"))
    return made


def in_subgraph() -> onnx.ModelProto:
    inner = helper.make_graph(
        [helper.make_node("Spy", [], ["z"], domain="evil")], "i", [], [helper.make_tensor_value_info("z", 1, None)]
    )
    nodes = [
        helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return model(nodes=nodes, opsets=[helper.make_opsetid("", 17), helper.make_opsetid("evil", 1)])


CUSTOM = [helper.make_opsetid("", 17), helper.make_opsetid("com.acme", 1)]
BAD_ONNX: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "external": (external, r"'w'.*etc/passwd.*external data"),
    "nan": (nan, "'w' holds NaN"),
    "opset": (lambda: model(opsets=[helper.make_opsetid("", 99)]), r"opset 99.*\d\d is known"),
    "ir": (lambda: model(ir=99), "IR version 99"),
    "custom": (
        lambda: model(nodes=[helper.make_node("Warp", ["x", "w"], ["y"], domain="com.acme")], opsets=CUSTOM),
        "com.acme::Warp",
    ),
    "unknown": (lambda: model(nodes=[helper.make_node("Warp", ["x", "w"], ["y"])]), "Warp"),
    "subgraph": (in_subgraph, "evil::Spy"),
    "unconnected": (lambda: model(nodes=[helper.make_node("MatMul", ["nobody", "w"], ["y"])]), "nobody"),
    "attribute": (lambda: model(nodes=[helper.make_node("Conv", ["x", "w"], ["y"], group="a")]), "group|Conv"),
    "rank": (lambda: model(nodes=[helper.make_node("Conv", ["x", "w"], ["y"])]), "Conv|refuses"),
}


@pytest.mark.parametrize("name", BAD_ONNX)
def test_onnx_refused_by_name(name: str, tmp_path: Path) -> None:
    make, said = BAD_ONNX[name]
    with pytest.raises(Problem, match=said) as caught:
        load(tmp_path, make().SerializeToString())
    assert 400 <= caught.value.status < 500
    assert not list((tmp_path / "out").iterdir())


def test_onnx_sequences_are_refused(tmp_path: Path) -> None:
    made = model()
    made.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None))
    made.graph.node[0].CopyFrom(helper.make_node("SequenceConstruct", ["x"], ["y"]))
    with pytest.raises(Unprocessable, match="sequence"):
        load(tmp_path, made.SerializeToString())
