"""TensorRT: plans for NVIDIA GPUs.

Says precisely why it cannot be used here; building and running come with the GPU work.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.domain.records import Signature
from app.errors import Unavailable
from app.runtimes import Availability, BuildOptions, Engine, LoadOptions, _cuda

SUFFIX = ".plan"


def available() -> Availability:
    """Asks libcuda before anything of NVIDIA's is imported."""
    return _cuda.availability("tensorrt", "TensorRT", "pip install 'enginesmith[gpu]'")


def build(source: Path, folder: Path, options: BuildOptions, progress: Callable[[float, str], None]) -> dict[str, Any]:
    """Raises Unavailable with the reason."""
    raise _refusal("build")


def load(folder: Path, signature: Signature, options: LoadOptions) -> Engine:
    """Raises Unavailable with the reason."""
    raise _refusal("load")


def _refusal(verb: str) -> Unavailable:
    return Unavailable(
        f"cannot {verb} an engine of TensorRT: {available().reason}",
        code="runtime_unavailable",
        hint="choose openvino or onnxruntime, or use a machine with an NVIDIA GPU",
        retryable=False,
    )
