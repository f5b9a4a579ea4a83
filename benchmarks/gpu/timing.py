"""Latency at one row and throughput at the best batch: of engines, and of what one would use instead."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.engines import drawn, exported
from benchmarks.gpu.networks import Subject
from workers.nn.measure import latency

Run = Callable[[], object]
# For a number of rows, a call that runs them and waits for the answer.
Runs = Callable[[int], Run]


@dataclass(frozen=True)
class Speed:
    """p50, p99: milliseconds for one row. best: rows per second at `batch`, the best of those tried."""

    who: str
    p50_ms: float
    p99_ms: float
    best: float
    batch: int


def speed(who: str, runs: Runs, batches: tuple[int, ...], device: str) -> Speed:
    """Measured with the answer on the host, as a service needs it."""
    found = {
        batch: latency(runs(batch), runtime=who, batch=batch, threads=torch.get_num_threads(), device=device)
        for batch in batches
    }
    best = max(found, key=lambda batch: found[batch].throughput_rps)
    return Speed(who, found[1].p50_ms, found[1].p99_ms, found[best].throughput_rps, best)


def others(subject: Subject, folder: Path, device: str) -> dict[str, Callable[[], Runs]]:
    """Whom engines are held against: torch eager and compiled, ONNX Runtime. Each is made when its turn comes."""
    half = torch.float16 if device == "cuda" else torch.bfloat16
    name = "fp16" if device == "cuda" else "bf16"
    return {
        "torch eager fp32": lambda: _torch(subject, device, torch.float32, False),
        f"torch eager {name}": lambda: _torch(subject, device, half, False),
        f"torch.compile {name}": lambda: _torch(subject, device, half, True),
        "ONNX Runtime fp32": lambda: _onnxruntime(subject, folder, device),
    }


def _torch(subject: Subject, device: str, dtype: torch.dtype, compiled: bool) -> Runs:
    module: Any = subject.module().to(device, dtype)
    if compiled:
        module = torch.compile(module, mode="reduce-overhead" if device == "cuda" else "default")

    def of(batch: int) -> Run:
        x = torch.from_numpy(drawn(subject, batch))
        if device == "cuda":
            x = x.pin_memory()

        def once() -> object:
            with torch.inference_mode():
                return module(x.to(device, dtype, non_blocking=True)).float().cpu()

        return once

    return of


def _onnxruntime(subject: Subject, folder: Path, device: str) -> Runs:
    ort = importlib.import_module("onnxruntime")
    wanted = ["CUDAExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]
    if wanted[0] not in ort.get_available_providers():
        raise RuntimeError(f"this ONNX Runtime has no {wanted[0]}")
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    session = ort.InferenceSession(str(exported(subject, folder)), settings, providers=wanted)

    def of(batch: int) -> Run:
        x = drawn(subject, batch)
        return lambda: session.run(None, {"input": x})

    return of
