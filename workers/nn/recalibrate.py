"""New statistics for batch norm after channels have gone: the old ones were taken with them in place."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from workers.nn.data import Rows
from workers.nn.predict import sensible_batch

MAX_ROWS = 8192


def recalibrate(module: nn.Module, rows: Rows, seed: int, device: str) -> int:
    """Replaces the running means and variances by the plain averages over up to 8,192 training rows. Returns how many
    layers that were: 0 where there is no batch norm, and nothing is done."""
    layers = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return 0
    module.to(device).eval()
    momenta = [m.momentum for m in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative average
        layer.train()
    some = rows.sample(MAX_ROWS, seed)
    order = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for x, _ in some.batches(sensible_batch(some.x.shape[1:], 256), order, lone_row=False):
            module(x.to(device))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
    return len(layers)
