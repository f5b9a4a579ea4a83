"""Builds an engine of a network in a precision, and holds its answers against PyTorch's in float64."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from app import runtimes
from app.runtimes import BuildOptions, Engine, LoadOptions
from benchmarks.gpu.networks import Subject
from workers.nn import ptq, qdq
from workers.nn.export import to_onnx

# ‖engine - reference‖ ÷ ‖reference‖ over drawn inputs: what a precision may cost. int8 is of drawn weights, too.
BOUNDS = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 1e-2, "bf16": 5e-2, "int8": 0.3}
ROWS = 16


@dataclass(frozen=True)
class Built:
    """error: relative; None where it was not built, and `problem` says why. layers: by precision, where it is told."""

    network: str
    precision: str
    seconds: float
    error: float | None
    folder: Path
    layers: dict[str, int]
    kept: int = 0
    problem: str | None = None

    @property
    def good(self) -> bool:
        return self.error is not None and self.error <= BOUNDS[self.precision]


class Drawn:
    """Rows to calibrate with."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def __len__(self) -> int:
        return 32

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        rng = np.random.default_rng(1)
        for _ in range(len(self)):
            yield {"input": rng.standard_normal((1, *self._subject.shape)).astype(np.float32)}


def exported(subject: Subject, folder: Path) -> Path:
    """The network as ONNX."""
    path = folder / f"{subject.name}.onnx"
    if not path.is_file():
        to_onnx(subject.module(), subject.signature, (torch.randn(2, *subject.shape),), path)
    return path


def build(subject: Subject, precision: str, runtime: str, folder: Path) -> Built:
    """Builds, loads and compares; what fails is told in the answer."""
    from workers.passes._built import built

    began = time.monotonic()
    engine_folder = folder / f"{subject.name}-{runtime}-{precision}"
    engine_folder.mkdir()
    told: dict[str, Any] = {}
    error, problem = None, None
    try:
        source = exported(subject, folder)
        if precision == "int8":
            source = quantized(subject, source, runtime, folder)
        sample = {"input": drawn(subject, 4)}
        options = BuildOptions(precision, max(subject.batches), samples=[sample])
        runtimes.get(runtime).build(source, engine_folder, options, lambda share, phase: None)
        told = built(engine_folder).get("build", {})
        seconds = time.monotonic() - began
        engine = load(subject, precision, runtime, engine_folder)
        try:
            error = apart(subject, engine)
        finally:
            engine.close()
    except Exception as refused:  # whatever it is, the others are looked at
        seconds, problem = time.monotonic() - began, str(refused) or type(refused).__name__
    return Built(
        subject.name, precision, seconds, error, engine_folder, told.get("precisions", {}),
        len(told.get("kept_fp32", {})), problem,
    )  # fmt: skip


def load(subject: Subject, precision: str, runtime: str, folder: Path) -> Engine:
    options = LoadOptions(precision=precision, max_batch=max(subject.batches))
    return runtimes.get(runtime).load(folder, subject.signature, options)


def quantized(subject: Subject, source: Path, target: str, folder: Path) -> Path:
    """The same network with Q/DQ nodes, calibrated on drawn rows."""
    path = folder / f"{subject.name}-{target}-int8.onnx"
    if not path.is_file():
        model, _ = qdq.opened(source, folder)
        onnx.save(ptq.quantize(model, Drawn(subject), target, ptq.recipes(model)[0], torch.get_num_threads()), path)
    return path


def drawn(subject: Subject, rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, *subject.shape)).astype(np.float32)


def apart(subject: Subject, engine: Engine) -> float:
    """Relative error over fresh inputs; NaN never passes."""
    x = drawn(subject, ROWS, seed=2)
    with torch.inference_mode():
        wanted = subject.module().double()(torch.from_numpy(x).double()).numpy()
    parts = np.split(x, (1, 5))
    first = [engine.infer({"input": part})["logits"] for part in parts]
    found = np.concatenate(first)
    if not np.isfinite(found).all() or not _steady(engine, parts, first):
        return float("inf")
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def _steady(engine: Engine, parts: list[np.ndarray], first: list[np.ndarray]) -> bool:
    """Whether each size answers after others as it did at first. CUDA graphs of several sizes are recorded from one
    execution context; some say that a graph is void once the context has been given another shape (TensorRT #3798)."""
    return all(
        np.allclose(
            engine.infer({"input": parts[n]})["logits"], first[n], rtol=1e-3, atol=1e-3 * np.abs(first[n]).max()
        )
        for n in (0, 1, 0, 2, 1, 0, 2)
    )
