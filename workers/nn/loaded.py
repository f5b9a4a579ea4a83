"""A stored version, loaded into what runs it: an engine into its own runtime, an ONNX file into ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from app import runtimes
from app.domain.records import Version
from app.errors import Unavailable
from app.runtimes import Engine, LoadOptions

USUAL_BATCH = 64


def runtime_of(version: Version) -> str:
    """The runtime that runs it; `torch` where none does."""
    usual = {"onnx": "onnxruntime", "torch": "torch", "torchscript": "torch"}
    return usual.get(version.format, version.format)


def load_engine(version: Version, folder: Path, threads: int, batch: int = 1) -> tuple[Engine, int]:
    """The engine, and the most rows that it takes at once: `batch` at least, where its rows are not fixed.

    Raises Unavailable where the runtime is not here.
    """
    runtime = runtimes.get(runtime_of(version))
    if not (found := runtime.available()).ok:
        raise Unavailable(
            f"this worker cannot run {version.ref}: {found.reason}", code="runtime_unavailable", retryable=False
        )
    most = int(version.details.get("max_batch", max(batch, USUAL_BATCH))) if version.signature.batched else 1
    precision = str(version.details.get("precision", "fp32"))
    return runtime.load(folder, version.signature, LoadOptions(threads, precision=precision, max_batch=most)), most
