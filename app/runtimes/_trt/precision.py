"""Precision lies in the graph: TensorRT's networks are strongly typed, so fp16 and bf16 are written into the ONNX.

Structure by onnxconverter-common, which knows fp16 alone: bf16 is the same graph with the other type, and its weights
rounded from the originals. What would overflow in fp16 stays in fp32, and is named.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.bfloat16 import narrowed
from app.errors import Unprocessable

Arrays = Mapping[str, npt.NDArray[Any]]
FP16_MAX = 65504.0
# Rows that nobody has seen may be larger than those that were tried.
_HEADROOM = 4.0
_MARK = "enginesmith.typed"  # where a graph says that it was rewritten, and how


@dataclass(frozen=True)
class Typed:
    """What was written. kept: nodes that stay in fp32, each with why. checked: inputs whose values were looked at."""

    kept: dict[str, str]
    checked: int


def write(source: Path, target: Path, precision: str, samples: Sequence[Arrays] = ()) -> Typed:
    """Writes the graph of `source` in a precision: fp32, tf32 and int8 as it is, fp16 and bf16 rewritten. Inputs and
    outputs keep their types. A graph that this wrote before is taken as it is. samples: inputs on which the range of
    fp16 is looked at. Raises Unprocessable."""
    import onnx

    if precision not in ("fp16", "bf16"):
        target.write_bytes(source.read_bytes())
        return Typed({}, 0)
    model = onnx.load(source)
    told = next((entry.value for entry in model.metadata_props if entry.key == _MARK), None)
    if told is not None and (known := json.loads(told))["precision"] == precision:
        target.write_bytes(source.read_bytes())
        return Typed(known["kept"], known["checked"])
    _name_nodes(model)
    kept = _kept(model, samples) if precision == "fp16" else {}
    originals = {t.name: t for t in model.graph.initializer}
    rewritten = _halved(model, list(kept))
    if precision == "bf16":
        _as_bfloat16(rewritten, {name: onnx.numpy_helper.to_array(t) for name, t in originals.items()})
    typed = Typed(kept, len(samples) if precision == "fp16" else 0)
    rewritten.metadata_props.add(key=_MARK, value=json.dumps({"precision": precision} | asdict(typed)))
    onnx.save(rewritten, target)
    return typed


def _name_nodes(model: Any) -> None:
    """The converter keeps nodes by their names: every node needs one of its own."""
    seen: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{number}"
        seen.add(node.name)


def _halved(model: Any, kept: list[str]) -> Any:
    import onnx
    from onnxconverter_common import float16

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that become zero; those that overflow are kept
        try:
            return float16.convert_float_to_float16(
                copy, min_positive_val=0.0, max_finite_val=FP16_MAX, keep_io_types=True, node_block_list=kept,
                check_fp16_ready=False,
            )  # fmt: skip
        except Exception as error:  # the converter's own: ValueError, TypeError, KeyError …
            raise Unprocessable(
                f"the graph cannot be written in half precision: {' '.join(str(error).split())[:300]}",
                code="unsupported_precision",
                hint="convert with precision fp32 or tf32",
            ) from error


def _kept(model: Any, samples: Sequence[Arrays]) -> dict[str, str]:
    """Nodes that read or write what fp16 cannot hold: name → why."""
    import onnx

    large = {
        t.name: f"its weight {t.name} reaches {peak:.3g}"
        for t in model.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and (peak := _peak(onnx.numpy_helper.to_array(t))) > FP16_MAX
    }
    for name, peak in _activations(model, samples).items():
        if not peak <= FP16_MAX / _HEADROOM:
            large[name] = f"{name} reaches {peak:.3g}"
    found: dict[str, str] = {}
    for node in model.graph.node:
        for name in (*node.input, *node.output):
            if name in large:
                found.setdefault(node.name, large[name])
    return found


def _activations(model: Any, samples: Sequence[Arrays]) -> dict[str, float]:
    """The largest value of every float tensor between two nodes, over all samples."""
    import onnx

    from app.runtimes import _libraries

    if not samples:
        return {}
    exposed = onnx.ModelProto()
    exposed.CopyFrom(onnx.shape_inference.infer_shapes(model))
    floats = {v.name: v for v in exposed.graph.value_info if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    already = {o.name for o in exposed.graph.output}
    exposed.graph.output.extend(v for name, v in floats.items() if name not in already)
    ort = _libraries.onnxruntime()
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # fused nodes would hide values
    session = ort.InferenceSession(exposed.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    peaks: dict[str, float] = {}
    for sample in samples:
        for name, value in zip(names, session.run(None, dict(sample)), strict=True):
            if isinstance(value, np.ndarray) and value.dtype == np.float32:
                peaks[name] = max(peaks.get(name, 0.0), _peak(value))
    for name, array in ((n, a) for sample in samples for n, a in sample.items() if a.dtype == np.float32):
        peaks[name] = max(peaks.get(name, 0.0), _peak(array))
    return peaks


def _peak(array: npt.NDArray[Any]) -> float:
    """The largest magnitude; infinity where a value is none."""
    peak = float(np.max(np.abs(array), initial=0.0))
    return peak if np.isfinite(peak) else float("inf")


def _as_bfloat16(model: Any, originals: Mapping[str, npt.NDArray[Any]]) -> None:
    """Every float16 becomes bfloat16; weights from what they were before they were float16."""
    import onnx

    half, brain = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            if tensor.data_type == half:
                _round(tensor, originals.get(tensor.name))
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name in ("to", "dtype") and attribute.i == half:
                    attribute.i = brain
                if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == half:
                    _round(attribute.t, None)
        for value in (*graph.value_info, *graph.input, *graph.output):
            if value.type.tensor_type.elem_type == half:
                value.type.tensor_type.elem_type = brain


def _graphs(graph: Any) -> list[Any]:
    """A graph and those of its branches and loops."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            found += [g for inner in (attribute.g, *attribute.graphs) if inner.node for g in _graphs(inner)]
    return found


def _round(tensor: Any, original: npt.NDArray[Any] | None) -> None:
    import onnx

    bits = narrowed(onnx.numpy_helper.to_array(tensor) if original is None else original)
    name, dims = tensor.name, list(tensor.dims)
    tensor.Clear()
    tensor.name, tensor.data_type = name, onnx.TensorProto.BFLOAT16
    tensor.raw_data = bits.astype("<u2").tobytes()
    tensor.dims.extend(dims)
