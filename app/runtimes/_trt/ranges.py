"""What fp16 cannot hold: weights and scales that are too large or too small for it, and the activations of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from app.runtimes._graphs import users_of

Arrays = Mapping[str, npt.NDArray[Any]]
FP16_MAX = 65504.0
# Rows that nobody has seen may be larger than those that were tried.
_HEADROOM = 4.0
_QUANTIZING = ("QuantizeLinear", "DequantizeLinear")
_LEAST_NORMAL = 2.0**-14  # below it fp16 loses digits, until none is left at 2**-25
_LEAST_SCALE = 2.0**-24  # fp16's smallest number: no scale may become 0, as what is up to half of it does
_TAKES_EPSILON = ("Add", "Max", "Clip")
_SCALES = ("Mul", "Div", "MatMul", "Gemm", "Conv", "ConvTranspose")  # by their first two inputs
_ON_THE_WAY = ("Sqrt", "Reciprocal", "Pow")
_APART = 2.0**-9  # by how much of the largest a scale may change; a step of int8 is 2**-7


def beyond(model: Any, samples: Sequence[Arrays]) -> dict[str, str]:
    """Nodes that read or write what fp16 cannot hold: name → why."""
    import onnx

    large = {
        t.name: f"its weight {t.name} reaches {most:.3g}"
        for t in model.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and (most := peak(onnx.numpy_helper.to_array(t))) > FP16_MAX
    }
    for name, most in _activations(model, samples).items():
        if not most <= FP16_MAX / _HEADROOM:
            large[name] = f"{name} reaches {most:.3g}"
        elif 0 < most < _LEAST_NORMAL:
            large[name] = f"{name} reaches {most:.3g} alone, of which fp16 has few digits"
    found: dict[str, str] = {}
    for node in model.graph.node:
        for name in (*node.input, *node.output):
            if name in large:
                found.setdefault(node.name, large[name])
    return _faint(model) | found | _vanishing(model)


def _faint(model: Any) -> dict[str, str]:
    """Nodes that scale by weights so small that fp16 has few digits of them, or none."""
    import onnx

    small = {
        t.name: f"its weight {t.name} reaches {most:.3g} alone, of which fp16 has few digits"
        for t in model.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and 0 < (most := peak(onnx.numpy_helper.to_array(t))) < _LEAST_NORMAL
    }
    return {
        node.name: small[name]
        for node in model.graph.node
        if node.op_type in _SCALES
        for name in node.input[:2]
        if name in small
    }


def _vanishing(model: Any) -> dict[str, str]:
    """Nodes that add a number which fp16 makes 0, as the epsilon of a norm, and those that divide by what they give:
    a row of zeros would be divided by 0."""
    import onnx

    small = {
        t.name: float(value)
        for t in model.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and (held := onnx.numpy_helper.to_array(t)).size == 1
        if 0 < abs(value := held.reshape(())) <= _LEAST_SCALE / 2
    }
    users, found = users_of(model.graph), {}
    for node in model.graph.node:
        given = next((name for name in node.input if name in small), None)
        if given is None or node.op_type not in _TAKES_EPSILON:
            continue
        open_, why = [node], f"its weight {given} is {small[given]:.3g}, which is 0 in fp16"
        while open_:
            at = open_.pop()
            found[at.name] = why
            if at is node or at.op_type in _ON_THE_WAY:
                after = [user for out in at.output for user in users.get(out, ())]
                open_ += [user for user in after if user.op_type in (*_ON_THE_WAY, "Div", "Mul")]
    return found


def scales_beyond(model: Any) -> dict[str, str]:
    """Q/DQ nodes whose scales fp16 cannot hold: name → why. Scales that are small beside others of the same tensor are
    made fp16's smallest number: in place."""
    import onnx

    values = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    found = {}
    for node in model.graph.node:
        if node.op_type not in _QUANTIZING or node.input[1] not in values:
            continue
        tensor = values[node.input[1]]
        scale = onnx.numpy_helper.to_array(tensor)
        most = peak(scale)
        held = np.maximum(scale, _LEAST_SCALE)
        if most * 128 > FP16_MAX:
            found[node.name] = f"its scale {most:.3g} gives values beyond what fp16 holds"
        elif float(np.max(np.abs(held.astype(np.float16).astype(np.float64) - scale), initial=0.0)) > most * _APART:
            found[node.name] = f"its scale {most:.3g} is too small for fp16"
        elif (held != scale).any():
            tensor.CopyFrom(onnx.numpy_helper.from_array(held.astype(np.float32), tensor.name))
    return found


def session(model: Any) -> Any:
    """ONNX Runtime's, of the very nodes of the graph: fused ones would hide values."""
    from app.runtimes import _libraries

    ort = _libraries.onnxruntime()
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def peak(array: npt.NDArray[Any]) -> float:
    """The largest magnitude; infinity where a value is none."""
    most = float(np.max(np.abs(array), initial=0.0))
    return most if np.isfinite(most) else float("inf")


def _activations(model: Any, samples: Sequence[Arrays]) -> dict[str, float]:
    """The largest value of every float tensor between two nodes, over all samples."""
    import onnx

    if not samples:
        return {}
    exposed = onnx.ModelProto()
    exposed.CopyFrom(onnx.shape_inference.infer_shapes(model))
    floats = {v.name: v for v in exposed.graph.value_info if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    already = {o.name for o in exposed.graph.output}
    exposed.graph.output.extend(v for name, v in floats.items() if name not in already)
    asked = session(exposed)
    names = [o.name for o in asked.get_outputs()]
    peaks: dict[str, float] = {}
    for sample in samples:
        for name, value in zip(names, asked.run(None, dict(sample)), strict=True):
            if isinstance(value, np.ndarray) and value.dtype == np.float32:
                peaks[name] = max(peaks.get(name, 0.0), peak(value))
    for name, array in ((n, a) for sample in samples for n, a in sample.items() if a.dtype == np.float32):
        peaks[name] = max(peaks.get(name, 0.0), peak(array))
    return peaks
