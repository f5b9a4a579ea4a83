"""The dry run of quantize: which layers would be int8, how large the file would be, and how long it would take."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from app.domain.records import Version
from app.domain.spec import Training
from app.domain.specs import QuantizeSpec
from workers.context import Context
from workers.net import load
from workers.nn import ptq, qdq
from workers.nn.data import Data
from workers.nn.forecast import training
from workers.nn.macs import onnx_macs, onnx_parameters
from workers.nn.quantizing import CALIBRATED
from workers.nn.requests import Plan

FEW, MORE = 1, 4  # requests


def foretell(
    spec: QuantizeSpec,
    version: Version,
    folder: Path,
    plain: Any,
    plan: Plan,
    data: Data | None,
    ctx: Context,
    notes: list[str],
) -> dict[str, Any]:
    """The report. The graph is really quantized, with a few random rows, and thrown away."""
    ctx.progress(0, None, phase="looking what can be quantized")
    rng = np.random.default_rng(spec.seed)
    at_once = CALIBRATED if version.signature.batched else 1
    rows = [plan.draw(rng, at_once) for _ in range(MORE)]
    seconds = {}
    for count in (FEW, MORE):
        began = time.perf_counter()
        model = ptq.quantize(plain, rows[:count], spec.target, ptq.Recipe(), ctx.threads)
        seconds[count] = time.perf_counter() - began
    labels, int8 = qdq.labels(plain), qdq.int8_layers(model)
    per_row = max(0.0, (seconds[MORE] - seconds[FEW]) / (MORE - FEW)) / at_once
    samples = min(spec.calibration_samples, len(data.train)) if data else spec.calibration_samples
    estimate = len(ptq.recipes(plain)) * (seconds[FEW] + per_row * samples)
    if spec.mode == "qat":
        if data is None:
            notes.append("How long the training takes is not known: it would need a data set.")
        else:
            plan_ = spec.finetune or Training(epochs=3, lr=0.001)
            # Rounding every weight and activation costs about as much again.
            estimate += 2 * training(load(folder, version), data, plan_, ctx) + seconds[FEW] + per_row * samples
    if spec.max_accuracy_drop is not None:
        notes.append("Were the bound exceeded, each round of leaving layers in higher precision would calibrate anew.")
    if data is None:
        notes.append("Predicted with random rows; the job itself needs a data set to calibrate with.")
    path = ctx.scratch / "source.onnx"
    size = len(plain.SerializeToString())
    parameters = version.parameters
    macs = version.macs
    if path.exists():
        parameters = parameters if parameters is not None else onnx_parameters(path)
        macs = macs if macs is not None else onnx_macs(path, plan.shapes)
    return {
        "dry_run": True,
        "mode": spec.mode,
        "target": spec.target,
        "layers": {
            labels[n]: "int8" if n in int8 else "stays in float: what it multiplies is not quantized" for n in labels
        },
        "parameters": {"before": parameters, "after": parameters},
        "macs": {"before": macs, "after": macs},
        "bytes": {"before": size, "after": len(model.SerializeToString()), "source": version.bytes},
        "estimate_s": round(estimate, 1),
        "notes": notes,
    }
