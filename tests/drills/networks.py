"""ONNX graphs for the drills: x [N, 3] → logits [N, 3] = x × factor, and one way each to be slow or to fail."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper

WIDTH = 4096  # numbers a row that the slow network works on: what a row costs grows with the rows


def scaled(factor: float = 1.0) -> bytes:
    return _model([helper.make_node("Mul", ["x", "f"], ["logits"])], {"f": np.float32(factor)})


def slow(row_s: float, factor: float = 1.0) -> bytes:
    """Takes about so long for a row, on one thread of this machine."""
    trips = 20
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(_slow(trips, factor), options, providers=["CPUExecutionProvider"])
    x = np.ones((4, 3), np.float32)
    taken = []
    for _ in range(20):
        began = time.perf_counter()
        session.run(None, {"x": x})
        taken.append(time.perf_counter() - began)
    return _slow(max(1, round(trips * row_s * len(x) / min(taken))), factor)


def _slow(trips: int, factor: float) -> bytes:
    step = [helper.make_node("Erf", ["v_in"], ["v_out"]), helper.make_node("Identity", ["go_in"], ["go_out"])]
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["mean", "many"], ["v"]),
        helper.make_node("Loop", ["trips", "", "v"], ["ground"], body=_body(step)),
        helper.make_node("ReduceMean", ["ground"], ["dust"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["dust", "zero"], ["nothing"]),
        helper.make_node("Mul", ["x", "f"], ["scaled"]),
        helper.make_node("Add", ["scaled", "nothing"], ["logits"]),
    ]
    return _model(
        nodes,
        {
            "f": np.float32(factor),
            "zero": np.float32(0),
            "many": np.ones((1, WIDTH), np.float32),
            "trips": np.int64(trips),
        },
    )


def hanging() -> bytes:
    """Goes round as often as its largest number says: 1e15 is for ever."""
    step = [helper.make_node("Add", ["v_in", "v_in"], ["v_out"]), helper.make_node("Identity", ["go_in"], ["go_out"])]
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["trips"], to=TensorProto.INT64),
        helper.make_node("Mul", ["x", "zero"], ["v"]),
        helper.make_node("Loop", ["trips", "", "v"], ["nothing"], body=_body(step)),
        helper.make_node("Add", ["x", "nothing"], ["logits"]),
    ]
    return _model(nodes, {"zero": np.float32(0)})


def gathering() -> bytes:
    """Looks a row up in a table of 41 by its first number, from -20 to 20; another number is no place in it."""
    nodes = [
        helper.make_node("Gather", ["x", "first"], ["number"], axis=1),
        helper.make_node("Cast", ["number"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Add", ["whole", "middle"], ["place"]),
        helper.make_node("Gather", ["table", "place"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["logits"]),
    ]
    return _model(nodes, {"first": np.int64(0), "middle": np.int64(20), "table": np.zeros((41, 3), np.float32)})


def logarithm() -> bytes:
    return _model([helper.make_node("Log", ["x"], ["logits"])], {})


def wide(width: int) -> bytes:
    """x [N, 3] → logits [N, width]: a large answer to a small question."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["mean", "many"], ["logits"]),
    ]
    return _model(nodes, {"many": np.ones((1, width), np.float32)}, width=width)


def picture() -> bytes:
    """x [N, 3, 8, 8] → logits [N, 3], the mean of every channel."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["logits"], axes=[2, 3], keepdims=0)]
    return _model(nodes, {}, shape=["N", 3, 8, 8])


def _body(nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
    """A Loop's: v_in → v_out."""
    value = helper.make_tensor_value_info
    return helper.make_graph(
        nodes,
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("go_in", TensorProto.BOOL, []),
            value("v_in", TensorProto.FLOAT, ["N", "M"]),
        ],
        [value("go_out", TensorProto.BOOL, []), value("v_out", TensorProto.FLOAT, ["N", "M"])],
    )


def _model(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], shape: list[Any] | None = None, width: int = 3
) -> bytes:
    held: list[npt.NDArray[Any]] = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape or ["N", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", width])],
        held,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    found: bytes = model.SerializeToString()
    return found
