"""How long each layer of a plan takes: a few runs of an execution context with a profiler."""

from __future__ import annotations

import statistics
from typing import Any

from app.gpu.inference import Plan
from app.gpu.memory import Shape
from app.gpu.session import Session

_WARM, _RUNS = 3, 7


def usual_shapes(plan: Plan) -> dict[str, Shape]:
    """Those that the first profile is fastest at."""
    return {name: tuple(plan.engine.get_tensor_profile_shape(name, 0)[1]) for name in plan.profiles[0]}


def layer_times(plan: Plan, shapes: dict[str, Shape]) -> dict[str, float]:
    """Name of a layer → the median of its milliseconds, over a few runs of zeros. They add up to more than a run takes
    that is not watched. Nothing where this TensorRT has no profilers. Raises what a run raises."""
    profiler = _profiler(plan.trt)
    if profiler is None:
        return {}
    session = _Watched(plan, profiler)
    try:
        with session.filling(shapes) as room:
            for array in room.values():
                array[...] = 0
        for _ in range(_WARM + _RUNS):
            profiler.runs.append({})
            session.run()
        runs = profiler.runs[_WARM:]
    finally:
        session.close()
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: statistics.median(run.get(name, 0.0) for run in runs) for name in names}


class _Watched(Session):
    """One whose runs TensorRT tells a profiler of; it waits for each then, which no CUDA graph can."""

    def __init__(self, plan: Plan, profiler: Any) -> None:
        self._profiler = profiler
        super().__init__(plan)

    def _open(self) -> None:
        super()._open()
        self._context.profiler = self._profiler
        self.uncapturable = "each layer is timed"


def _profiler(trt: Any) -> Any:
    if not hasattr(trt, "IProfiler"):
        return None

    class Profiler(trt.IProfiler):  # type: ignore[misc]  # met when the library is there
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.runs: list[dict[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            run = self.runs[-1]
            run[layer_name] = run.get(layer_name, 0.0) + ms

    return Profiler()
