"""What the Open Inference Protocol says of a served version: its tensors, Triton's configuration, its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from app.domain.records import Tensor
from app.metrics import Meter
from app.serving.oip import DATATYPES
from app.serving.served import ServedLane
from app.serving.waiting import LAST, MIDDLE

if TYPE_CHECKING:
    from app.serving.served import Served

# Triton's names, which clients compare.
_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "openvino": "openvino", "tensorrt": "tensorrt_plan"}


def platform(lane: ServedLane) -> str:
    return _PLATFORMS.get(lane.version.format, lane.version.format)


def metadata(name: str, lane: ServedLane, versions: Sequence[str]) -> dict[str, Any]:
    """versions: every one that is served under the name."""
    return {
        "name": name,
        "versions": list(versions),
        "platform": platform(lane),
        "inputs": [_told(t) for t in lane.signature.inputs],
        "outputs": [_told(t) for t in lane.signature.outputs],
    }


def _told(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": DATATYPES[tensor.dtype], "shape": list(tensor.shape)}


def config(name: str, lane: ServedLane) -> dict[str, Any]:
    """Triton's ModelConfig as JSON, as far as it says something here. dims: without the batch axis, as Triton's."""
    batched = lane.signature.batched
    delay_us = round(lane.plan.max_delay_ms * 1000)
    told: dict[str, Any] = {
        "name": name,
        "platform": platform(lane),
        "backend": lane.version.format,
        "version_policy": {"specific": {"versions": [lane.version.version]}},
        "max_batch_size": lane.max_batch if batched else 0,
        "input": [
            _tensor(t, batched) | {"format": "FORMAT_NONE", "allow_ragged_batch": False, "optional": False}
            for t in lane.signature.inputs
        ],
        "output": [_tensor(t, batched) | {"label_filename": ""} for t in lane.signature.outputs],
        "batch_input": [],
        "batch_output": [],
        "instance_group": [
            {
                "name": name,
                "kind": "KIND_GPU" if lane.version.format.startswith("tensorrt") else "KIND_CPU",
                "count": lane.plan.instances,
            }
        ],
        "parameters": {},
        "model_warmup": [],
        "model_transaction_policy": {"decoupled": False},
        "response_cache": {"enable": False},
    }
    if batched:
        told["dynamic_batching"] = {
            "preferred_batch_size": [lane.max_batch],
            "max_queue_delay_microseconds": delay_us,
            "preserve_ordering": False,
            "priority_levels": LAST,
            "default_priority_level": MIDDLE,
            "default_queue_policy": {"max_queue_size": lane.plan.max_queue, "allow_timeout_override": True},
        }
    return told


def _tensor(tensor: Tensor, batched: bool) -> dict[str, Any]:
    datatype = DATATYPES[tensor.dtype]
    dims = list(tensor.shape[1:] if batched else tensor.shape)
    told = {
        "name": tensor.name,
        "data_type": f"TYPE_{'STRING' if datatype == 'BYTES' else datatype}",
        "dims": dims or [1],
        "is_shape_tensor": False,
    }
    return told if dims else told | {"reshape": {"shape": []}}


def statistics(meter: Meter) -> dict[str, Any]:
    """Triton's model statistics: counts, and nanoseconds summed over requests."""
    return {
        "name": meter.model,
        "version": meter.version,
        "last_inference": round(meter.last_s * 1000),
        "inference_count": meter.rows,
        "execution_count": meter.runs,
        "inference_stats": {
            "success": _duration(meter.succeeded, meter.total_us),
            "fail": _duration(sum(meter.failed.values()), 0),
            "queue": _duration(meter.succeeded, meter.queue_us),
            "compute_input": _duration(meter.succeeded, meter.input_us),
            "compute_infer": _duration(meter.succeeded, meter.infer_us),
            "compute_output": _duration(meter.succeeded, meter.output_us),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _duration(batches.runs, batches.input_us),
                "compute_infer": _duration(batches.runs, batches.infer_us),
                "compute_output": _duration(batches.runs, batches.output_us),
            }
            for rows, batches in sorted(meter.by_rows.items())
        ],
    }


def _duration(count: int, us: float) -> dict[str, int]:
    return {"count": count, "ns": round(us * 1000)}


def index(fleet: Served, only_ready: bool) -> list[dict[str, str]]:
    """Triton's repository index: what is served, and what is to be. only_ready: only what would answer now."""
    return [
        {"name": name, "version": version, "state": state, "reason": why}
        for name in fleet.names()
        for version, state, why in fleet.standing(name)
        if state == "READY" or not only_ready
    ]
