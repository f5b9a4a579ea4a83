"""What two ONNX files of the same network have in common: the graph without its weights, as one number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import onnx

_WEIGHTS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def architecture(model: onnx.ModelProto) -> str:
    """sha256 of nodes, names, shapes and types, but of no floating-point number that training could have changed.
    Copies no initializer."""
    told = hashlib.sha256()
    for opset in sorted(model.opset_import, key=lambda o: o.domain):
        told.update(f"{opset.domain or 'ai.onnx'}:{opset.version};".encode())
    told.update(_bare(model.graph).SerializeToString(deterministic=True))
    for function in model.functions:
        told.update(function.name.encode())
        told.update(_bare(onnx.GraphProto(node=function.node)).SerializeToString(deterministic=True))
    return told.hexdigest()


def _bare(graph: onnx.GraphProto) -> onnx.GraphProto:
    """A copy without weights and remarks."""
    found = onnx.GraphProto(initializer=(_bare_tensor(t) for t in graph.initializer))
    for tensor in (*graph.input, *graph.output):
        found.input.append(onnx.ValueInfoProto(name=tensor.name, type=tensor.type))
    for node in graph.node:
        found.node.append(
            onnx.NodeProto(
                op_type=node.op_type, domain=node.domain, input=node.input, output=node.output,
                attribute=_bare_attributes(node.attribute),
            )
        )  # fmt: skip
    return found


def _bare_attributes(given: Iterable[onnx.AttributeProto]) -> list[onnx.AttributeProto]:
    found = []
    for attribute in sorted(given, key=lambda a: a.name):
        bare = onnx.AttributeProto()
        if attribute.HasField("t"):
            bare.name, bare.type = attribute.name, attribute.type
            bare.t.CopyFrom(_bare_tensor(attribute.t))
        elif attribute.HasField("g"):
            bare.name, bare.type = attribute.name, attribute.type
            bare.g.CopyFrom(_bare(attribute.g))
        else:
            bare.CopyFrom(attribute)
            bare.doc_string = ""
        found.append(bare)
    return found


def _bare_tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type in _WEIGHTS or len(tensor.raw_data) > 1 << 20:
        return onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    # Whole numbers are shapes and indices: part of the network.
    return tensor
