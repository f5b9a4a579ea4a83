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
        shapes = usual_shapes(plan)
        found = layers(_told(trt, device, plan, shapes), _operators(graph))
        try:
            times = layer_times(plan, shapes)
        except Exception as error:  # a plan is not worse for it
            told = " ".join(str(error).split())[:300] or type(error).__name__
            return Inspected(found, {}, [f"The layers could not be timed: {told}."])
        return Inspected(timed(found, times), shapes if times else {})
    finally:
        plan.close()


def _told(trt: Any, device: Device, plan: Plan, shapes: Mapping[str, Shape]) -> str:
    """What the inspector says, for inputs of these shapes: without any, all that depends on sizes left open, the types
    of tensors too, is 'N/A due to dynamic shapes' (IEngineInspector::setExecutionContext)."""
    with device.current():
        inspector, context = plan.engine.create_engine_inspector(), plan.engine.create_execution_context()
        try:
            if inspector is None:
                return ""
            if context is not None and all(context.set_input_shape(name, shape) for name, shape in shapes.items()):
                inspector.execution_context = context
            return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
        finally:
            del inspector, context


def _operators(graph: Path) -> dict[str, str]:
    import onnx

    return {node.name: node.op_type for node in onnx.load(graph).graph.node}
