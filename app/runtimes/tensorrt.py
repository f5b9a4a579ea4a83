"""TensorRT: plans for NVIDIA GPUs. Everything is in `_trt`, for both flavours of it, and in `app.gpu`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.domain.records import Signature
from app.runtimes import Availability, BuildOptions, Engine, LoadOptions
from app.runtimes._trt import travel
from app.runtimes._trt.flavour import TENSORRT

SUFFIX = ".plan"
SOURCE = "model.onnx"


def available() -> Availability:
    """Asks libcuda before anything of NVIDIA's is imported."""
    return TENSORRT.available()


def ties() -> dict[str, str] | None:
    """See `app.runtimes.ties`."""
    return travel.ties(TENSORRT)


def build(source: Path, folder: Path, options: BuildOptions, progress: Callable[[float, str], None]) -> dict[str, Any]:
    """See `_trt.runtime.build`."""
    from app.runtimes._trt import runtime

    return runtime.build(TENSORRT, source, folder, options, progress)


def load(folder: Path, signature: Signature, options: LoadOptions) -> Engine:
    """See `_trt.runtime.load`."""
    from app.runtimes._trt import runtime

    return runtime.load(TENSORRT, folder, signature, options)
