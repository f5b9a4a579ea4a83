"""Which queue a job lies on: that of the workers that can do it, and gain by what they have."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from app.domain.plans import queue_of_runtime
from app.domain.specs import MENU, ConvertSpec, EvaluateSpec, OptimizeSpec, SearchSpec, Spec
from app.queue import NAMES

_ON_GPU = frozenset({"tensorrt", "tensorrt_rtx"})


def choose_queue(spec: Spec, workers: list[dict[str, Any]], formats: Collection[str] = ()) -> str:
    """gpu where the work gains from one and a worker serves that queue, else cpu; where it needs a runtime that only
    workers with a GPU have, the queue of those that have it. formats: of the versions that are worked on."""
    for runtime in sorted(_needed(spec, formats)):
        queue = queue_of_runtime(runtime)
        if any(queue in worker.get("queues", ()) for worker in workers):
            return queue
    if isinstance(spec, ConvertSpec):
        able = [w for w in workers if w.get("targets", {}).get(spec.target, {}).get("ok")]
        served = {queue for w in able for queue in w.get("queues", ()) if queue in NAMES}
        if spec.target in _ON_GPU:
            return "cpu" if served and "gpu" not in served else "gpu"
        return "gpu" if served == {"gpu"} else "cpu"
    is_served = any("gpu" in w.get("queues", ()) for w in workers)
    on_gpu = spec.on_gpu
    if isinstance(spec, SearchSpec):  # its trials go where it goes
        on_gpu = any(MENU[link["kind"]].on_gpu for link in spec.chain or ())
    return "gpu" if on_gpu and is_served else "cpu"


def _needed(spec: Spec, formats: Collection[str]) -> set[str]:
    """The runtimes without which it cannot be done, of those that a processor lacks."""
    found: set[str] = set()
    if isinstance(spec, ConvertSpec):
        found = {spec.target}
    elif isinstance(spec, OptimizeSpec):
        found = set(spec.targets)
    elif isinstance(spec, SearchSpec):
        found = {str(link.get("target")) for link in spec.chain or ()}
    elif isinstance(spec, EvaluateSpec):
        found = set(formats)
    return found & _ON_GPU
