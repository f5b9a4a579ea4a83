"""Precision lies in the graph: TensorRT's networks are strongly typed, so fp16 and bf16 are written into the ONNX, and
around int8 layers, too. What would overflow in fp16 stays in fp32, and is named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import Unprocessable
from app.runtimes._graphs import MOVES, name_nodes, opset, users_of
from app.runtimes._trt.halving import halve, left, lift_constants
from app.runtimes._trt.ranges import Arrays, beyond, scales_beyond, session

_MARK = "enginesmith.typed"  # where a graph says that it was rewritten, and how
_HALF_SCALES = 19  # the opset since which scales of Q/DQ nodes may be fp16
_COMPARED = 4


@dataclass(frozen=True)
class Typed:
    """What was written. kept: nodes that stay in fp32, each with why. checked: inputs whose values were looked at.
    rest: what the layers of an int8 graph that are not quantized compute in."""

    kept: dict[str, str]
    checked: int
    rest: str | None = None
    notes: list[str] = field(default_factory=list)


def write(source: Path, target: Path, precision: str, samples: Sequence[Arrays] = ()) -> Typed:
    """Writes the graph of `source` in a precision: fp32 and tf32 as it is, fp16 and bf16 rewritten, int8 with fp16
    around what is quantized. Inputs and outputs keep their types. A graph that this wrote before is taken as it is.
    samples: inputs on which the range of fp16 is looked at. Raises Unprocessable, also for a file that is no ONNX and
    for doubles at its border, which TensorRT would take for floats without a word."""
    model = _opened(source)
    if precision not in ("fp16", "bf16", "int8"):
        target.write_bytes(source.read_bytes())
        return Typed({}, 0)
    told = next((entry.value for entry in model.metadata_props if entry.key == _MARK), None)
    if told is not None and (known := json.loads(told)).pop("precision") == precision:
        target.write_bytes(source.read_bytes())
        return Typed(**known)
    try:
        rewritten, typed = _rewritten(model, precision, samples)
    except Unprocessable as error:
        if precision != "int8":
            raise
        return write_plain(source, target, error.detail)
    _save(rewritten, target, precision, typed)
    return typed


def _opened(source: Path) -> Any:
    import onnx

    try:
        model = onnx.load(source)
    except Exception as error:  # protobuf's own
        raise Unprocessable(
            f"the file is no ONNX graph: {' '.join(str(error).split())[:200]}",
            code="unsupported_graph",
            hint="check it with onnx.checker",
        ) from error
    for tensor in (*model.graph.input, *model.graph.output):
        if tensor.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE:
            raise Unprocessable(
                f"{tensor.name} is float64, which TensorRT has not",
                code="unsupported_dtype",
                hint="let the model take and give float32",
            )
    return model


def write_plain(source: Path, target: Path, why: str) -> Typed:
    """Writes an int8 graph whose other layers stay in fp32. why: they do."""
    import onnx

    note = f"What is not int8 computes in fp32 instead of fp16: {why}."
    typed = Typed({}, 0, "fp32", [note])
    _save(onnx.load(source), target, "int8", typed)
    return typed


def _save(model: Any, target: Path, precision: str, typed: Typed) -> None:
    import onnx

    model.metadata_props.add(key=_MARK, value=json.dumps({"precision": precision} | asdict(typed)))
    onnx.save(model, target)


def _rewritten(model: Any, precision: str, samples: Sequence[Arrays]) -> tuple[Any, Typed]:
    import onnx

    brain = precision == "bf16"
    try:
        if model.functions:
            import onnx.inliner

            model = onnx.inliner.inline_local_functions(model)
        if precision == "int8":
            model = _raised(model, samples)
        lift_constants(model)
        name_nodes(model)
        kept = left(model) | ({} if brain else beyond(model, samples))
        whole = set(kept)
        if precision == "int8":
            scales = scales_beyond(model)
            kept = _readers(model, scales) | kept
            whole = _with_scales(model, set(kept) | set(scales))
        kind = onnx.TensorProto.BFLOAT16 if brain else onnx.TensorProto.FLOAT16
        rewritten = halve(model, kind, whole)
        if precision == "int8":  # there is another way; elsewhere TensorRT says what it thinks of it
            onnx.checker.check_model(rewritten, full_check=True)
    except Unprocessable:
        raise
    except Exception as error:  # onnx's and ONNX Runtime's own, of a dozen kinds
        raise Unprocessable(
            f"the graph cannot be written in half precision: {' '.join(str(error).split())[:300]}",
            code="unsupported_precision",
            hint="convert with precision fp32 or tf32",
        ) from error
    return rewritten, Typed(kept, 0 if brain else len(samples), "fp16" if precision == "int8" else None)


def _raised(model: Any, samples: Sequence[Arrays]) -> Any:
    """The graph at an opset where scales may be fp16. Raises Unprocessable where it is not the same graph then."""
    import onnx

    before = opset(model)
    if before >= _HALF_SCALES:
        return model
    found = onnx.version_converter.convert_version(model, _HALF_SCALES)
    onnx.checker.check_model(found)
    asked = [[t.name for t in (*of.graph.input, *of.graph.output)] for of in (model, found)]
    same = asked[0] == asked[1]
    if same and samples:
        old, new = session(model), session(found)
        for sample in samples[:_COMPARED]:
            answers = zip(old.run(None, dict(sample)), new.run(None, dict(sample)), strict=True)
            same = same and all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in answers)
    if not same:
        raise Unprocessable(f"the file is of opset {before}, and is another network at {_HALF_SCALES}")
    return found


def _readers(model: Any, scales: dict[str, str]) -> dict[str, str]:
    """The nodes that compute with what these DequantizeLinear nodes give, and those that move it on its way."""
    users = users_of(model.graph)
    nodes = [n for n in model.graph.node if n.name in scales and n.op_type == "DequantizeLinear"]
    open_ = [(node.output[0], scales[node.name]) for node in nodes]
    found: dict[str, str] = {}
    while open_:
        tensor, why = open_.pop()
        for user in users.get(tensor, ()):
            if user.name not in found and user.name not in scales:
                found[user.name] = why
                open_ += [(out, why) for out in user.output] if user.op_type in MOVES else []
    return found


def _with_scales(model: Any, kept: set[str]) -> set[str]:
    """The names, and those of the Q/DQ nodes around them: a Cast between a layer and its scales would part them, and
    TensorRT compute it in float. A DequantizeLinear whose other readers are fp16 is doubled, in place."""
    import onnx

    graph, users = model.graph, users_of(model.graph)
    made = {out: node for node in graph.node for out in node.output}
    found, nodes = set(kept), []
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and (before := made.get(node.input[0])) is not None and before.name in kept:
            found.add(node.name)
        if node.name in kept and node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            for place, tensor in enumerate(node.input):
                before = made.get(tensor)
                if before is None or before.op_type != "DequantizeLinear" or before.name in found:
                    continue
                if all(user.name in kept for user in users[tensor]):
                    found.add(before.name)
                    continue
                own = onnx.NodeProto()
                own.CopyFrom(before)
                own.name = own.output[0] = f"{before.name}/{node.name}/{place}"
                node.input[place] = own.output[0]
                nodes.append(own)
                found.add(own.name)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return found
