"""Other weights in a plan that was built for it: seconds, where a build takes minutes. TensorRT 10 and 11."""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import Internal
from app.gpu.device import Device
from app.gpu.inference import Plan
from app.gpu.messages import listener, words
from app.runtimes import BuildOptions

# Operator → the inputs at which TensorRT takes a constant as weights, which a plan built for it lets go. What is not
# here is part of the structure: a constant that the parser reads as a setting (an exponent, a bound, sizes) would keep
# its old value without a word. So would the scales of Q/DQ, for all that is documented.
_WEIGHTS = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1), "BatchNormalization": (1, 2, 3, 4),
    "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2), "GroupNormalization": (1, 2), "Gather": (0,),
    "PRelu": (1,), "Add": (0, 1), "Mul": (0, 1), "Sub": (0, 1), "Div": (0, 1),
}  # fmt: skip
# Of these a single number may be a setting rather than weights.
_ELEMENTWISE = ("Add", "Mul", "Sub", "Div")


def key_of(graph: Path, options: BuildOptions, built_for: Mapping[str, Any]) -> str:
    """What plans have in common that differ in their weights alone. graph: ONNX in the precision of the build, with
    its weights inside. built_for: version of TensorRT and GPU."""
    # Where zeros may have been left out of the computation, other weights would have to have theirs in the same places.
    told = {
        "structure": hashlib.sha256(_structure(graph, bool(options.sparse))).hexdigest(),
        "options": [
            options.precision, options.max_batch, {name: list(shape) for name, shape in options.shapes.items()},
            list(options.buckets), options.level, options.workspace_bytes, bool(options.sparse),
        ],
        "for": [built_for.get(name) for name in ("runtime", "version", "device", "compute_capability")],
    }  # fmt: skip
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def refit(trt: Any, device: Device, plan: bytes, graph: Path) -> bytes:
    """The plan, with the weights of a graph of the same structure. Raises Internal with TensorRT's own words where it
    cannot take all of them."""
    held = Plan(trt, device, plan)
    messages = listener(trt)
    # They go in this order, whatever happens, and not by a garbage collector: see building.build.
    engine = refitter = reader = blob = None
    try:
        with device.current():
            engine = held.engine
            if not engine.refittable:
                raise _refused("this plan was not built for it")
            refitter = trt.Refitter(engine, messages)
            reader = trt.OnnxParserRefitter(refitter, messages)
            if not reader.refit_from_file(str(graph)):  # True: all weights of the plan have been given
                errors = [str(reader.get_error(n).desc()) for n in range(reader.num_errors)]
                raise _refused(words(errors) if errors else messages.said())
            if missing := refitter.get_missing_weights():
                raise _refused(f"the graph has no {', '.join(sorted(map(str, missing))[:8])}")
            if not refitter.refit_cuda_engine():
                raise _refused(messages.said())
            if (blob := engine.serialize()) is None:
                raise _refused(messages.said())
            return bytes(blob)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        with device.current():
            blob = reader = refitter = engine = None
            held.close()


def _structure(path: Path, keeps_values: bool) -> bytes:
    """The graph without the values of its weights, unless it keeps them, and without what only people read."""
    import onnx

    model = onnx.load(path)
    graph = model.graph
    exchanged: set[str] = set() if keeps_values else _exchangeable(graph)
    for tensor in graph.initializer:
        if tensor.name in exchanged:
            name, dims, kind = tensor.name, list(tensor.dims), tensor.data_type
            tensor.Clear()
            tensor.name, tensor.data_type = name, kind
            tensor.dims.extend(dims)
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *model.functions):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    graph.ClearField("value_info")
    for name in ("producer_name", "producer_version", "model_version", "domain"):
        model.ClearField(name)
    found: bytes = model.SerializeToString(deterministic=True)
    return found


def _exchangeable(graph: Any) -> set[str]:
    """Names of the initializers that are weights wherever they are used."""
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        return set()  # branches and loops may use any of them
    elements = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer if _is_float(tensor)}
    settings = {value.name for value in (*graph.input, *graph.output)}
    constants = {tensor.name for tensor in graph.initializer} - settings
    for node in graph.node:
        places = _WEIGHTS.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ()
        if constants.issuperset(name for name in node.input if name):
            constants.update(node.output)  # computed once, when it is built
            places = ()
        for place, name in enumerate(node.input):
            single = node.op_type in _ELEMENTWISE and elements.get(name, 0) < 2
            if place not in places or single:
                settings.add(name)
    return elements.keys() - settings


def _is_float(tensor: Any) -> bool:
    import onnx

    kinds = onnx.TensorProto
    return tensor.data_type in (kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16)


def _refused(why: str) -> Internal:
    return Internal(f"TensorRT does not exchange the weights: {why}", code="not_refitted")
