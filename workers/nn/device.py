"""How a network runs best on a device while it trains: the memory format of pictures, the precision of steps."""

from __future__ import annotations

import contextlib
import copy
import io

import torch
from torch import nn

from app.domain.specs import Training
from workers.nn.data import Data


def bf16(plan: Training, device: str) -> bool:
    """Whether steps run under bf16 autocast: where the plan asks for it, or leaves it open on a GPU.

    Not by itself on a CPU: with instructions for it a step of a CIFAR ResNet-20 took 0.5 to 0.6 of the time, but with
    several threads on a busy host its kernels wait for each other in a loop, and the time of small networks multiplies.
    """
    return plan.amp == "bf16" or (plan.amp == "auto" and device == "cuda")


def autocast(device: str, *, bf16: bool) -> torch.autocast:
    """What steps run under; one object serves them all."""
    return torch.autocast(device, torch.bfloat16, enabled=bf16)


def layout(module: nn.Module, data: Data, device: str) -> torch.memory_format:
    """channels_last for pictures where the network runs so: a `view` may forbid it. A GPU's tensor cores want it; on a
    CPU steps of residual networks of several widths took 0.7 to 1.0 of the time with it."""
    if not _sees_pictures(module, data):
        return torch.preserve_format
    x, _ = data.train.take(torch.arange(min(2, len(data.train))))
    try:
        trial = copy.deepcopy(module).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        # torch.fx prints what a graph raises, and a `view` that cannot be had is no fault.
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
            trial(x.to(device, memory_format=torch.channels_last))
    except RuntimeError:
        return torch.preserve_format
    return torch.channels_last


def plain(module: nn.Module) -> None:
    """Puts weights back into rows, strides and all: `contiguous` would leave those of a single channel as they are."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)


def cuda_devices() -> list[int]:
    """For torch.random.fork_rng."""
    return list(range(torch.cuda.device_count()))


def _sees_pictures(module: nn.Module, data: Data) -> bool:
    return data.train.x.dim() == 4 and any(isinstance(m, nn.Conv2d) for m in module.modules())
