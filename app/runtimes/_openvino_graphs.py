"""What OpenVINO's graphs tell and how they are made: the library itself is handed in."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from typing import Any

from app.runtimes import BuildOptions, _libraries

_SHAPES_KEPT = 1024


class Shapes:
    """Whether shapes fit the network. OpenVINO's CPU plugin does not look: a MatMul of the wrong size reads past the
    end of its input. Its shape inference does look, takes milliseconds, and so is asked once per set of shapes."""

    def __init__(self, ov: Any, model: Any) -> None:
        self._partial = ov.PartialShape
        self._model = model
        self.branches = any(op.get_type_name() == "If" for op in model.get_ops())
        self._lock = threading.Lock()
        self._fit: dict[tuple[tuple[int, ...], ...], None] = {}

    def check(self, shapes: tuple[tuple[int, ...], ...], positions: list[int]) -> None:
        """Raises OpenVINO's RuntimeError for shapes that do not fit."""
        if shapes in self._fit:
            return
        with self._lock:
            self._model.reshape({i: self._partial(list(s)) for i, s in zip(positions, shapes, strict=True)})
            if len(self._fit) >= _SHAPES_KEPT:
                self._fit.pop(next(iter(self._fit)))
            self._fit[shapes] = None


def is_steady(ov: Any, model: Any) -> bool:
    """Whether a run does the same work whatever the values: nothing is repeated or chosen, and with the batch given
    every shape is known. Changes the model."""
    if any(op.get_type_name() in ("If", "Loop", "TensorIterator") for op in model.get_ops()):
        return False
    one_row = {i: ov.PartialShape([1, *list(port.partial_shape)[1:]]) for i, port in enumerate(model.inputs)}
    try:
        model.reshape(one_row)
    except RuntimeError:
        return False
    return all(port.partial_shape.is_static for op in model.get_ops() for port in op.outputs())


def from_torchscript(ov: Any, source: Path, options: BuildOptions) -> Any:
    """TorchScript carries neither dtypes nor shapes: float32 is assumed, and the shapes asked for."""
    script = importlib.import_module("torch").jit.load(str(source), map_location="cpu")
    model = _libraries.openvino_converter()(script.eval())
    shapes = list(options.shapes.values())
    for position, port in enumerate(model.inputs):
        parameter = port.get_node()
        if port.get_element_type().is_dynamic():
            parameter.set_element_type(ov.Type.f32)
        if position < len(shapes):
            parameter.set_partial_shape(ov.PartialShape([-1, *shapes[position][1:]]))
    model.validate_nodes_and_infer_types()
    return model
