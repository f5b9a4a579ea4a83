"""A plan looked at where there is a GPU: its layers, what each computes in, and how long it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.gpu.device import Device
from app.gpu.inference import Plan
from app.gpu.memory import Shape
from app.runtimes._trt.layers import Layer, layers, timed
from app.runtimes._trt.profiling import layer_times, usual_shapes


@dataclass(frozen=True)
class Inspected:
    """timed_with: the inputs' shapes in the runs that were timed; nothing where none was."""

    layers: list[Layer] = field(default_factory=list)
    timed_with: Mapping[str, Shape] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def inspect(trt: Any, device: Device, blob: bytes, graph: Path) -> Inspected:
    """graph: what the plan was built from. Raises Internal for a plan that does not load."""
    plan = Plan(trt, device, blob)
    try:
        with device.current():
            inspector = plan.engine.create_engine_inspector()
            text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
            del inspector
        found = layers(text, _operators(graph))
        try:
            shapes = usual_shapes(plan)
            times = layer_times(plan, shapes)
        except Exception as error:  # a plan is not worse for it
            told = " ".join(str(error).split())[:300] or type(error).__name__
            return Inspected(found, {}, [f"The layers could not be timed: {told}."])
        return Inspected(timed(found, times), shapes if times else {})
    finally:
        plan.close()


def _operators(graph: Path) -> dict[str, str]:
    import onnx

    return {node.name: node.op_type for node in onnx.load(graph).graph.node}
