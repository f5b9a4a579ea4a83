"""What a run costs where there is nothing to compute: an engine of one trivial operation, for the same inputs."""

from __future__ import annotations

from pathlib import Path

from app import runtimes
from app.domain.records import Signature, Tensor, Version
from app.runtimes import BuildOptions
from workers.context import Context
from workers.nn.loaded import runtime_of


def floor(like: Version, ctx: Context) -> tuple[Version, Path] | None:
    """An engine of the same runtime that takes the same rows and gives the largest number of each; None where the
    model's inputs are not one batched tensor of floats, or it is no engine."""
    inputs = like.signature.inputs
    if not like.is_engine or len(inputs) != 1 or not like.signature.batched or inputs[0].dtype != "float32":
        return None
    rank = len(inputs[0].shape)
    if rank < 2:
        return None
    path, folder = ctx.scratch / "floor.onnx", ctx.folder("floor")
    _write(path, inputs[0], rank)
    runtimes.get(runtime_of(like)).build(path, folder, BuildOptions(), lambda share, phase: None)
    output = Tensor(name="most", shape=(-1, *([1] * (rank - 1))))
    details = like.details | {"precision": "fp32"}
    return like.but(signature=Signature(inputs=inputs, outputs=(output,)), details=details), folder


def _write(path: Path, tensor: Tensor, rank: int) -> None:
    import onnx
    from onnx import TensorProto, helper

    sizes = ["batch", *(size if size > 0 else f"d{axis}" for axis, size in enumerate(tensor.shape[1:]))]
    node = helper.make_node("ReduceMax", [tensor.name, "axes"], ["most"], keepdims=1)
    axes = helper.make_tensor("axes", TensorProto.INT64, [rank - 1], list(range(1, rank)))
    graph = helper.make_graph(
        [node],
        "floor",
        [helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("most", TensorProto.FLOAT, ["batch", *([1] * (rank - 1))])],
        [axes],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
