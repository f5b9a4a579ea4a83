"""How a network runs best on a device while it trains: the memory format of images, and the precision of its steps."""

from __future__ import annotations

import torch
from torch import nn

from app.domain.specs import Training
from workers.nn.data import Data


def uses_bf16(plan: Training, device: str) -> bool:
    """Whether steps run in bf16: where the plan asks for it, or leaves it open on a GPU."""
    return plan.amp == "bf16" or (plan.amp == "auto" and device == "cuda")


def autocast(plan: Training, device: str) -> torch.autocast:
    """What the steps of a training run under; the same object serves them all."""
    return torch.autocast(device, torch.bfloat16, enabled=uses_bf16(plan, device))


def layout(module: nn.Module, data: Data, device: str) -> torch.memory_format:
    """channels_last for images on a GPU, whose tensor cores want it, where the network runs so: a `view` may forbid it.

    Not on a CPU: measured there, a step took 0.7× the time with two convolutions, but 1.08× with a residual network.
    """
    if device != "cuda" or data.train.x.dim() != 4 or not any(isinstance(m, nn.Conv2d) for m in module.modules()):
        return torch.preserve_format
    x, _ = data.train.take(torch.arange(min(2, len(data.train))))
    module.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # torch's stubs lack it
    try:
        with torch.no_grad():
            module(x.to(device, memory_format=torch.channels_last))
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last


def cuda_devices() -> list[int]:
    """For torch.random.fork_rng."""
    return list(range(torch.cuda.device_count()))
