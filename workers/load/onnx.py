"""ONNX: read with the onnx library, checked, tried once in ONNX Runtime, kept as it was uploaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import defs, numpy_helper

from app.domain.records import Signature, Tensor
from app.errors import BadCheckpoint, Unprocessable
from app.runtimes import _libraries
from workers.load import signature
from workers.load.onnx_likeness import architecture

_STANDARD = ("", "ai.onnx")
# Operators that come with ONNX Runtime or with ONNX itself, beside the standard ones.
_KNOWN_DOMAINS = (*_STANDARD, "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training", "com.microsoft")
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.DOUBLE: "float64", onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16", onnx.TensorProto.BOOL: "bool", onnx.TensorProto.STRING: "string",
    onnx.TensorProto.INT8: "int8", onnx.TensorProto.INT16: "int16", onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64", onnx.TensorProto.UINT8: "uint8", onnx.TensorProto.UINT16: "uint16",
    onnx.TensorProto.UINT32: "uint32", onnx.TensorProto.UINT64: "uint64",
}  # fmt: skip
_RUNTIME_TYPES = re.compile(r"tensor\((\w+)\)")


@dataclass(frozen=True)
class Found:
    signature: Signature
    parameters: int
    sparsity: float
    layer_sparsity: dict[str, float]
    opset: int
    architecture: str  # sha256 of the graph without its weights
    notes: tuple[str, ...]


def read(path: Path, said: Signature | None, threads: int = 1) -> Found:
    """What an ONNX file holds. Raises BadCheckpoint, Unprocessable: naming operator, version, or other file."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, RuntimeError, MemoryError) as error:
        raise BadCheckpoint(f"the ONNX file cannot be read: {error}", hint="upload it again, whole") from error
    if not model.HasField("graph") or not model.graph.output:
        raise BadCheckpoint("it is no ONNX model: it has no graph, or no outputs")
    _refuse_external(model)
    _refuse_versions(model)
    _refuse_operators(model)
    try:
        onnx.checker.check_model(str(path) if path.stat().st_size > 2**30 else model)
    except onnx.checker.ValidationError as error:
        raise BadCheckpoint(f"the ONNX checker refuses it: {_line(error)}", hint="export it again") from error
    _refuse_nan(model)
    session = _session(path, threads)
    weights = list(_initializers(model.graph))
    parameters = sum(_size(t) for t in weights if t.data_type in _FLOATS)
    layers = {t.name: t for t in weights if t.data_type in _FLOATS and len(t.dims) >= 2 and t.name}
    zeros = {name: int((numpy_helper.to_array(t) == 0).sum()) for name, t in layers.items()}
    total = sum(_size(t) for t in layers.values())
    return Found(
        signature=_signature(model, session, said),
        parameters=parameters,
        sparsity=sum(zeros.values()) / total if total else 0.0,
        layer_sparsity={name: zeros[name] / max(1, _size(t)) for name, t in layers.items()},
        architecture=architecture(model),
        opset=next((o.version for o in model.opset_import if o.domain in _STANDARD), 0),
        notes=("ONNX: it can be converted; it cannot be trained or pruned",),
    )


def _refuse_external(model: onnx.ModelProto) -> None:
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            where = next((e.value for e in tensor.external_data if e.key == "location"), "?")
            raise BadCheckpoint(
                f"the tensor {tensor.name!r} lies in another file, {where!r}: external data is not taken",
                code="external_data",
                hint="save everything in one file: onnx.save_model(model, path, save_as_external_data=False)",
            )


def _refuse_versions(model: onnx.ModelProto) -> None:
    if model.ir_version > onnx.IR_VERSION:
        raise Unprocessable(
            f"the file is of ONNX IR version {model.ir_version}; this installation reads up to {onnx.IR_VERSION}",
            code="onnx_too_new",
            hint="export it for an older version of ONNX",
        )
    for opset in model.opset_import:
        newest = defs.onnx_opset_version() if opset.domain in _STANDARD else defs.onnx_ml_opset_version()
        if opset.domain in (*_STANDARD, "ai.onnx.ml") and opset.version > newest:
            raise Unprocessable(
                f"the file needs opset {opset.version} of {opset.domain or 'ai.onnx'}; here up to {newest} is known",
                code="onnx_too_new",
                hint=f"export it with opset_version={newest} or lower",
            )


def _refuse_operators(model: onnx.ModelProto) -> None:
    own = {(f.domain, f.name) for f in model.functions}
    versions = {o.domain: o.version for o in model.opset_import}
    odd: dict[str, str] = {}
    for node in _nodes(model):
        domain = "" if node.domain in _STANDARD else node.domain
        if (node.domain, node.op_type) in own or domain == "com.microsoft":
            continue
        version = versions.get(node.domain, versions.get("", versions.get("ai.onnx", 1)))
        if domain not in _KNOWN_DOMAINS or not _has(node.op_type, version, domain):
            odd[f"{node.domain}::{node.op_type}" if node.domain else node.op_type] = node.name
    if odd:
        raise Unprocessable(
            f"operators that are not part of ONNX: {', '.join(sorted(odd)[:10])}",
            code="custom_operator",
            hint="export the network with standard operators: code for others would have to come with the file",
        )


def _has(operator: str, version: int, domain: str) -> bool:
    try:
        defs.get_schema(operator, version, domain)
    except defs.SchemaError:
        return False
    return True


def _refuse_nan(model: onnx.ModelProto) -> None:
    for tensor in _tensors(model):
        if tensor.data_type in _FLOATS:
            values = numpy_helper.to_array(tensor)
            if np.isnan(np.asarray(values, dtype=np.float32) if values.dtype.itemsize < 4 else values).any():
                raise BadCheckpoint(
                    f"the tensor {tensor.name!r} holds NaN", hint="upload a model from before it diverged"
                )


def _session(path: Path, threads: int) -> Any:
    onnxruntime = _libraries.onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise Unprocessable(
            f"ONNX Runtime {onnxruntime.__version__} refuses it: {_line(error)}",
            code="onnx_refused",
            hint="export it again with standard operators and an older opset",
        ) from error


def _signature(model: onnx.ModelProto, session: Any, said: Signature | None) -> Signature:
    stored = {t.name for t in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}
    running = {v.name: v for v in (*session.get_inputs(), *session.get_outputs())}
    inputs = [_tensor(v, running.get(v.name)) for v in model.graph.input if v.name not in stored]
    outputs = [_tensor(v, running.get(v.name)) for v in model.graph.output]
    if not inputs:
        raise BadCheckpoint("the network has no inputs: it always answers the same")
    if said is None:
        return Signature(inputs=tuple(inputs), outputs=tuple(outputs))
    names = {t.name: t for t in said.inputs}
    if set(names) != {t.name for t in inputs}:
        raise Unprocessable(
            f"the signature names the inputs {sorted(names)}, the file has {sorted(t.name for t in inputs)}",
            code="bad_signature",
            hint="leave the signature away: an ONNX file has its own",
        )
    return Signature(inputs=tuple(_narrowed(t, names[t.name]) for t in inputs), outputs=tuple(outputs))


def _narrowed(tensor: Tensor, said: Tensor) -> Tensor:
    """The file's tensor, with sizes that the owner fixed where the file leaves them open."""
    fits = len(said.shape) == len(tensor.shape) and all(
        a in (-1, b) for a, b in zip(tensor.shape, said.shape, strict=True)
    )
    if said.dtype != tensor.dtype or not fits:
        raise Unprocessable(
            f"{said.name!r} is {said.dtype} {list(said.shape)} in the signature, {tensor.dtype} {list(tensor.shape)} "
            "in the file",
            code="bad_signature",
            hint="leave the signature away: an ONNX file has its own",
        )
    return signature.batched(tensor.but(shape=said.shape))


def _tensor(value: onnx.ValueInfoProto, running: Any) -> Tensor:
    kind = value.type.WhichOneof("value")
    if kind is not None and kind != "tensor_type":
        raise Unprocessable(
            f"{value.name!r} is a {kind.removesuffix('_type')}, not a tensor: such models are not taken",
            code="not_a_tensor",
            hint="export a network whose inputs and outputs are tensors; for scikit-learn classifiers use zipmap=False",
        )
    given = value.type.tensor_type
    dtype = _DTYPES.get(int(given.elem_type))
    if dtype is None and running is not None and (found := _RUNTIME_TYPES.match(running.type)):
        dtype = {"float": "float32", "double": "float64"}.get(found[1], found[1])
    if dtype is None:
        raise Unprocessable(f"{value.name!r} has a type that is not taken", code="not_a_tensor")
    if given.HasField("shape"):
        shape = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else -1 for d in given.shape.dim]
    elif running is not None and running.shape:
        shape = [d if isinstance(d, int) and d > 0 else -1 for d in running.shape]
    else:
        shape = []
    return signature.batched(
        Tensor.model_validate({"name": value.name, "dtype": dtype, "shape": shape, "batch_axis": None})
    )


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    waiting = [graph]
    while waiting:
        found = waiting.pop()
        yield found
        for node in found.node:
            waiting += [g for a in node.attribute for g in (*([a.g] if a.HasField("g") else ()), *a.graphs)]


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        for graph in _graphs(onnx.GraphProto(node=function.node)):
            yield from graph.node


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Stored weights; some exporters write them as constants among the nodes."""
    for inner in _graphs(graph):
        yield from inner.initializer
        for node in inner.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.HasField("t") and _size(attribute.t) > 1:
                        named = onnx.TensorProto()
                        named.CopyFrom(attribute.t)
                        named.name = node.output[0] if node.output else attribute.t.name
                        yield named


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in _graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices
    for node in _nodes(model):
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t


def _size(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims)) if tensor.dims else 1


def _line(error: Exception) -> str:
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(said)[:500] if said else type(error).__name__
