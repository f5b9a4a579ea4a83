"""The engines' own answers: the downloaded files, run by their libraries directly, nothing of ours in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.runtimes import _libraries

Array = npt.NDArray[Any]


def own_answers(runtime: str, folder: Path, x: Array) -> Array:
    """The first output for one input x. Raises LookupError for a runtime that this file does not know."""
    if runtime == "openvino":
        return _openvino(folder, x)
    if runtime == "onnxruntime":
        return _onnxruntime(folder, x)
    raise LookupError(f"the demo does not know how to run {runtime}")


def _openvino(folder: Path, x: Array) -> Array:
    openvino = _libraries.openvino()
    # Otherwise a processor with bf16 computes in bf16, and the answers are those of another engine.
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    model = openvino.Core().compile_model(next(folder.rglob("*.xml")), "CPU", hints)
    return np.array(next(iter(model(x).values())))


def _onnxruntime(folder: Path, x: Array) -> Array:
    onnxruntime = _libraries.onnxruntime()
    found = sorted([*folder.rglob("*.onnx"), *folder.rglob("*.ort")])
    session = onnxruntime.InferenceSession(str(found[0]), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def largest_difference(one: Array, other: Array) -> float:
    """Largest |one - other| ÷ max(1, max |other|)."""
    return float(np.abs(one - other).max() / max(1.0, float(np.abs(other).max())))
