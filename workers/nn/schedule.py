"""Optimizers and learning-rate schedules by the names of the menu. A schedule steps with every batch."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import lr_scheduler

from app.domain.specs import Training


def optimizer_for(module: nn.Module, plan: Training) -> torch.optim.Optimizer:
    """plan.momentum is SGD's momentum, and beta1 of the Adams."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    # One fused kernel instead of several per parameter; the same arithmetic. It knows floating point only.
    fused = all(p.is_floating_point() for p in parameters)
    if plan.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay, fused=fused
        )
    kind = torch.optim.Adam if plan.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=plan.lr, betas=(plan.momentum, 0.999), weight_decay=plan.weight_decay, fused=fused)


def schedule_for(optimizer: torch.optim.Optimizer, plan: Training, steps: int) -> lr_scheduler.LRScheduler:
    """steps: batches per epoch.

    onecycle: torch's OneCycleLR up to lr (Smith and Topin 2018) with the momentum left as asked. cosine: down to 0.
    step: a tenth after each third of the training.
    """
    total = steps * plan.epochs
    if plan.schedule == "onecycle" and total > 3:  # below that there is no room for a rise and a fall
        return lr_scheduler.OneCycleLR(optimizer, max_lr=plan.lr, total_steps=total, cycle_momentum=False)
    if plan.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)
    if plan.schedule == "step":
        return lr_scheduler.StepLR(optimizer, step_size=max(1, total // 3), gamma=0.1)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
