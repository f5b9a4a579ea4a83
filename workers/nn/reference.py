"""The network that an engine is compared with, asked in the plainest way: torch eager, ONNX without optimisations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from enginesmith.shapes import flatten

from app.runtimes import _libraries, _ort_values
from workers.net import Net
from workers.nn.predict import numpy
from workers.nn.requests import Ask, Request

COMPARING = ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")


def eager(net: Net) -> Ask:
    """torch on the CPU."""
    module = net.module.cpu().eval()
    names = [t.name for t in net.signature.outputs]

    def ask(request: Request) -> Request:
        inputs = [torch.from_numpy(np.ascontiguousarray(request[t.name])) for t in net.signature.inputs]
        with torch.no_grad():
            found, _ = flatten(module(*inputs))
        return dict(zip(names, map(numpy, found), strict=True))

    return ask


def onnx(path: Path, threads: int) -> Ask:
    """ONNX Runtime with every optimisation of the graph off; onnx's own reference where it refuses the graph."""
    onnxruntime = _libraries.onnxruntime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception:  # its errors have no common class
        from onnx.reference import ReferenceEvaluator

        plain = ReferenceEvaluator(str(path))
        return lambda request: dict(zip(plain.output_names, plain.run(None, request), strict=True))
    names = [o.name for o in session.get_outputs()]
    run = _ort_values.runner(onnxruntime, session)
    return lambda request: dict(zip(names, run(None, request), strict=True))


def symbols(path: Path) -> dict[str, list[str | None]]:
    """Input name → the names of its dynamic sizes, where the ONNX file has any."""
    import onnx as library

    found: dict[str, list[str | None]] = {}
    for given in library.load(str(path)).graph.input:
        dims = given.type.tensor_type.shape.dim
        # "?" and the like are what exporters write for sizes that they know nothing about.
        found[given.name] = [d.dim_param if d.dim_param.strip("?-_ ") not in ("", "None") else None for d in dims]
    return found


def constants(path: Path) -> dict[str, list[int]]:
    """Input name → the numbers that the ONNX graph compares it with: what a sampling rate or a mode may be."""
    import onnx as library
    from onnx import numpy_helper

    graph = library.load(str(path)).graph
    known: dict[str, Any] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                value = library.helper.get_attribute_value(attribute)
                known[node.output[0]] = numpy_helper.to_array(value) if attribute.name == "value" else np.asarray(value)
    found: dict[str, list[int]] = {}
    for node in graph.node:
        if node.op_type in COMPARING:
            for name, other in (tuple(node.input), tuple(node.input)[::-1]):
                if other in known and known[other].size and known[other].dtype.kind in "iuf":
                    found.setdefault(name, []).append(int(known[other].flatten()[0]))
    return found


def positive(path: Path) -> set[str]:
    """Inputs of the ONNX graph that must be above zero: scales of quantization, and variances."""
    import onnx as library

    places = {"QuantizeLinear": 1, "DequantizeLinear": 1, "BatchNormalization": 4}
    nodes = library.load(str(path)).graph.node
    return {n.input[places[n.op_type]] for n in nodes if n.op_type in places and len(n.input) > places[n.op_type]}


def opset(path: Path) -> int | None:
    """The version of ONNX's own operators that a file is written in."""
    import onnx as library

    imports = library.load(str(path)).opset_import
    return next((int(o.version) for o in imports if o.domain in ("", "ai.onnx")), None)
