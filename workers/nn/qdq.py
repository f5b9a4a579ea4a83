"""ONNX graphs with QuantizeLinear and DequantizeLinear nodes: made ready for them, read, and partly taken back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import version_converter

from app.errors import Conflict, Unprocessable
from app.runtimes import _libraries
from app.runtimes._graphs import MOVES, drop_unused, name_nodes, opset, users_of

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Per-channel scales came with 13; 17 is what every runtime here has long known.
LEAST_OPSET, USUAL_OPSET = 13, 17


def opened(path: Path, scratch: Path) -> tuple[Any, list[str]]:
    """A float ONNX file ready to be quantized, and what was done to it: opset 13 or newer, batch norms folded into
    their convolutions, a name for every node. Raises Conflict for a file that is quantized already."""
    model, notes = onnx.load(str(path)), []
    if _has(model, "QuantizeLinear", "DequantizeLinear"):
        raise Conflict(
            "the model has quantized layers already",
            code="already_quantized",
            hint="quantize the network that it was made from",
        )
    given = {tensor.name for tensor in model.graph.initializer}
    for tensor in [t for t in model.graph.input if t.name in given]:  # as files before IR 4 have it
        model.graph.input.remove(tensor)
    if (before := opset(model)) < LEAST_OPSET:
        try:
            model = version_converter.convert_version(model, USUAL_OPSET)
            notes.append(
                f"The file was of opset {before}, where scales per channel do not exist: it is {USUAL_OPSET} now."
            )
        except Exception:  # the converter raises whatever it stumbles on
            notes.append(f"The file stays at opset {before}, which has one scale per tensor only: less accurate.")
    if _has(model, "BatchNormalization"):
        model = _folded(model, scratch)
    _name(model)
    return model, notes


def labels(model: Any) -> dict[str, str]:
    """Node name of every layer with weights of its own → what a person calls it: the path of its weight, or of its
    bias, where the file has it, else the node's name. Call it on the float graph."""
    weights = {t.name for t in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.op_type in LAYERS]
    users = users_of(model.graph)
    paths = [_path(node, weights, users) for node in nodes]
    return {n.name: p if p and paths.count(p) == 1 else n.name for n, p in zip(nodes, paths, strict=True)}


def int8_layers(model: Any) -> set[str]:
    """Names of the layers all of whose factors come out of a DequantizeLinear."""
    made = {out: node for node in model.graph.node for out in node.output}

    def is_int8(tensor: str, depth: int = 0) -> bool:
        node = made.get(tensor)
        if node is None or depth > 32:
            return False
        return node.op_type == "DequantizeLinear" or (node.op_type in MOVES and is_int8(node.input[0], depth + 1))

    return {n.name for n in model.graph.node if n.op_type in LAYERS and all(is_int8(t) for t in n.input[:2])}


def alone(quantized: Any, plain: Any, name: str) -> Any:
    """The float graph in which one layer is quantized as it is in `quantized`, and nothing else."""
    model = onnx.ModelProto()
    model.CopyFrom(quantized)
    graph = model.graph
    floats = {t.name: t for t in plain.graph.initializer}
    users = users_of(graph)
    made = {out: node for node in graph.node for out in node.output}
    instead: dict[str, str] = {}
    restored: dict[str, Any] = {}
    originals = {n.name: n for n in plain.graph.node}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or name in _reached(node.output[0], users):
            continue
        source = made.get(node.input[0])
        if source is not None and source.op_type == "QuantizeLinear":
            instead[node.output[0]] = source.input[0]
    for node in graph.node:
        original = originals.get(node.name)
        if original is None:
            continue
        for place, tensor in enumerate(node.input):
            if tensor in instead:
                node.input[place] = instead[tensor]
            elif node.name != name and place < len(original.input) and original.input[place] in floats:
                # Weights as they were, and biases as before they were corrected.
                node.input[place] = original.input[place]
                restored[original.input[place]] = floats[original.input[place]]
    kept = [t for t in graph.initializer if t.name not in restored]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *restored.values()])
    drop_unused(graph)
    return model


def tidied(model: Any) -> None:
    """Takes out what says where and how it was made. In place."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]  # some describe tensors that are int8 now


def weights_bytes(model: Any) -> int:
    return sum(len(t.raw_data) or 4 * len(t.float_data) for t in model.graph.initializer)


def uses_attention(model: Any) -> bool:
    """Whether a Softmax feeds a matrix product, as in a transformer."""
    users = users_of(model.graph)
    soft = (n.output[0] for n in model.graph.node if n.op_type == "Softmax")
    return any(u.op_type == "MatMul" for tensor in soft for u in users.get(tensor, ()))


def has_narrow_layers(model: Any) -> bool:
    """Whether a convolution works in groups: with few weights to a sum, what rounding does to it does not cancel."""
    groups = (a.i for n in model.graph.node if n.op_type == "Conv" for a in n.attribute if a.name == "group")
    return any(group > 1 for group in groups)


def _has(model: Any, *operators: str) -> bool:
    return any(n.op_type in operators for n in model.graph.node)


def _folded(model: Any, scratch: Path) -> Any:
    """ONNX Runtime's basic optimizations, which keep to ONNX's own operators: batch norms go into convolutions. A
    batch norm between a convolution and its quantized output would keep both of them in float."""
    library = _libraries.onnxruntime()
    options = library.SessionOptions()
    options.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.optimized_model_filepath = str(scratch / "folded.onnx")
    try:
        library.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise Unprocessable(
            f"ONNX Runtime, which calibrates, refuses this graph: {str(error).splitlines()[0][:300]}",
            code="unsupported_graph",
        ) from error
    found = onnx.load(options.optimized_model_filepath)
    (scratch / "folded.onnx").unlink()
    used = {n.domain for n in found.graph.node} | {""}
    if not used <= {"", "ai.onnx"}:
        return model
    kept = [o for o in found.opset_import if o.domain in ("", "ai.onnx")]
    del found.opset_import[:]
    found.opset_import.extend(kept)
    return found


def _name(model: Any) -> None:
    """NNCF tells nodes apart by their names."""
    name_nodes(model)
    # NNCF reads the first one as ONNX's own.
    ordered = sorted(model.opset_import, key=lambda o: o.domain not in ("", "ai.onnx"))
    kept = [(o.domain, o.version) for o in ordered]
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in kept)


def _path(node: Any, weights: Collection[str], users: Mapping[str, Sequence[Any]]) -> str | None:
    found = [t for t in node.input[1:2] if t in weights]
    if found and found[0].endswith(".weight"):
        return str(found[0]).removesuffix(".weight")
    # A linear layer over more than rows is a product and a sum: the weights were transposed and have a name no more.
    sums = [user for user in users.get(node.output[0], ()) if user.op_type == "Add"] if found else []
    biases = {t for user in sums for t in user.input if t in weights and t.endswith(".bias")}
    return biases.pop().removesuffix(".bias") if len(biases) == 1 else None


def _reached(tensor: str, users: dict[str, list[Any]]) -> set[str]:
    """Names of the nodes that compute with a tensor, behind whatever only moves its numbers."""
    found: set[str] = set()
    seen, open_ = {tensor}, [tensor]
    while open_:
        for user in users.get(open_.pop(), ()):
            if user.op_type in MOVES:
                new = [out for out in user.output if out not in seen]
                seen.update(new)
                open_ += new
            else:
                found.add(user.name)
    return found
