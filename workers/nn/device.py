"""How a network runs best on a device while it trains: the memory format of pictures, the precision of steps."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from app.domain.specs import Training
from workers.nn.data import Data
from workers.nn.macs import macs

# Multiply-accumulates of one picture from which bf16 pays on a CPU. Measured on one core with bf16 instructions, time
# of a step: 0.53 of fp32's at 41 million, 0.77 at 10 and at 2.6 million, 1.08 at half a million.
WORTH_BF16 = 2_000_000


def bf16(module: nn.Module, data: Data, plan: Training, device: str) -> bool:
    """Whether steps run under bf16 autocast. Left open (`auto`), it is what the device has instructions for, and never
    what a stopwatch says, so that the same seed gives the same weights here: on a GPU yes; on a CPU for networks of
    convolutions large enough that learn classes, since values would lose digits, and so would weights rounded to int8.
    """
    if plan.amp != "auto":
        return plan.amp == "bf16"
    if device == "cuda":
        return True
    learns_classes = data.task == "classification" and plan.loss != "mse"
    if not learns_classes or not _has_bf16() or not _sees_pictures(module, data):
        return False
    if any(parametrize.is_parametrized(m) for m in module.modules()):
        return False
    x, _ = data.train.take(torch.arange(min(1, len(data.train))))
    return (macs(module, (x.to(device),)) or 0) >= WORTH_BF16


def autocast(device: str, *, bf16: bool) -> torch.autocast:
    """What steps run under; one object serves them all."""
    return torch.autocast(device, torch.bfloat16, enabled=bf16)


def layout(module: nn.Module, data: Data, device: str) -> torch.memory_format:
    """channels_last for pictures where the network runs so: a `view` may forbid it. A GPU's tensor cores want it; on a
    CPU steps took 0.7 to 0.9 of the time with it, measured on one core with residual networks of many widths."""
    if not _sees_pictures(module, data):
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


def _sees_pictures(module: nn.Module, data: Data) -> bool:
    return data.train.x.dim() == 4 and any(isinstance(m, nn.Conv2d) for m in module.modules())


def _has_bf16() -> bool:
    """Whether this CPU multiplies bf16 itself: without, it is slower than fp32."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
