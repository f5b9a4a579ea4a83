"""Asking a network for its answers, whatever runs it: torch tensors in, numpy out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from app.domain.records import Signature
from app.runtimes import Engine
from workers.nn.quality import Predict

BATCH_BYTES = 32 * 1024 * 1024


def first(output: Any) -> torch.Tensor:
    """The tensor that counts of what a network returns: itself, `logits`, or the first of several."""
    return tensors(output)[0]


def tensors(output: Any) -> list[torch.Tensor]:
    """All tensors of what a network returns, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, Mapping):
        found = [output["logits"]] if "logits" in output else []
        return found + [t for k, v in output.items() if k != "logits" for t in tensors(v)]
    if isinstance(output, (list, tuple)):
        return [t for v in output for t in tensors(v)]
    return []


def chosen(signature: Signature) -> str:
    """The name of the output that counts: as `first` chooses."""
    names = [t.name for t in signature.outputs]
    return "logits" if "logits" in names else names[0]


def eager(module: nn.Module, device: str = "cpu") -> Predict:
    """torch eager. Puts the module into eval mode."""
    module.to(device).eval()

    def predict(x: torch.Tensor) -> npt.NDArray[Any]:
        with torch.no_grad():  # not inference_mode: what a module caches meanwhile must stay fit for training
            return numpy(first(module(x.to(device))))

    return predict


def engine(loaded: Engine, signature: Signature, max_batch: int) -> Predict:
    """A loaded engine; batches are cut to what it takes, and a model that is not batched is asked row by row."""
    name, out = signature.inputs[0].name, chosen(signature)
    at_once = max_batch if signature.batched else 1

    def predict(x: torch.Tensor) -> npt.NDArray[Any]:
        rows = np.ascontiguousarray(x.numpy())
        parts = [loaded.infer({name: rows[i : i + at_once]})[out] for i in range(0, len(rows), at_once)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return predict


def numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The tensor as an array; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach().cpu()
    return np.asarray(tensor.float() if tensor.dtype == torch.bfloat16 else tensor)


def sensible_batch(row: torch.Size, most: int = 512) -> int:
    """How many rows of that shape to evaluate at once, so that a batch stays below 32 MiB."""
    return int(max(1, min(most, BATCH_BYTES // max(1, 4 * row.numel()))))
