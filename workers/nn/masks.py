"""Masks: which weights of a pruned network must stay zero."""

from __future__ import annotations

import torch

from app.domain.records import Version
from workers.net import Net, prunable


def inherited(net: Net, source: Version) -> dict[str, torch.Tensor]:
    """Parameter name → bool, for a network whose zeros were pruned: its exact zeros stay. Empty for any other.

    A version carries no masks: pruning says `masked` in its details, and every later version inherits the word.
    """
    if not source.details.get("masked"):
        return {}
    layers = {name: layer.weight for name, layer in prunable(net.module).items()}
    return {f"{n}.weight": w.detach() != 0 for n, w in layers.items() if isinstance(w, torch.Tensor) and (w == 0).any()}
