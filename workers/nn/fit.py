"""THE training loop: read it top to bottom. Training, and fine-tuning after pruning, both come here."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from app.domain.specs import Training
from app.errors import Unprocessable
from workers.context import Context
from workers.nn.checkpoint import PERIOD_S, Checkpoints, Weights
from workers.nn.data import Data
from workers.nn.loss import loss_for
from workers.nn.measure import between_steps
from workers.nn.predict import eager, first, sensible_batch
from workers.nn.quality import answers
from workers.nn.schedule import optimizer_for, schedule_for

LOOK_EVERY = 100  # steps between two looks at whether the loss is still a number: each look waits for a GPU

Masks = Mapping[str, torch.Tensor]


@dataclass
class Fitted:
    """How a training went. best: the best validation figure, after epoch `best_epoch` (from 1)."""

    epochs: int = 0
    best: float = -math.inf
    best_epoch: int = 0
    stopped_early: bool = False
    resumed_at: int | None = None
    final_loss: float | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {k: v for k, v in asdict(self).items() if k != "resumed_at"}

    def summary(self) -> dict[str, Any]:
        return {
            "epochs": self.epochs,
            "best_epoch": self.best_epoch or None,
            "best_validation": self.best if math.isfinite(self.best) else None,
            "stopped_early": self.stopped_early,
            "resumed_at_epoch": self.resumed_at,
            "final_loss": self.final_loss,
        }


def fit(
    module: nn.Module,
    data: Data,
    plan: Training,
    ctx: Context,
    *,
    masks: Masks | None = None,
    phase: str = "training",
    checkpoint_s: float = PERIOD_S,
) -> Fitted:
    """Trains `module` in place on `data.train`; leaves it on `ctx.device`, in eval mode.

    masks: parameter name → bool; where it is False the weight stays zero. Resumes from the checkpoint of an earlier
    attempt, if there is one, to the same result. Raises Unprocessable: `diverged`, or a loss that cannot be computed.
    """
    torch.manual_seed(plan.seed)
    order = torch.Generator().manual_seed(plan.seed)
    device, amp = ctx.device, plan.amp == "bf16" or (plan.amp == "auto" and ctx.device == "cuda")
    layout = _layout(module.to(device), data, device)
    module.to(device, memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
    loss_of = loss_for(module, data, plan, device)
    steps = len(data.train.cuts(plan.batch_size, lone_row=False))
    optimizer = optimizer_for(module, plan)
    schedule = schedule_for(optimizer, plan, steps)
    frozen = [(p, masks[n].to(device)) for n, p in module.named_parameters() if masks and n in masks]
    group = optimizer.param_groups[0]
    checkpoints = Checkpoints(ctx, module, optimizer, schedule, order, checkpoint_s)
    best: Weights | None = None
    done = Fitted()
    if (saved := checkpoints.load()) is not None:
        best, done = saved.pop("best_weights"), Fitted(**saved, resumed_at=saved["epochs"])
        ctx.log(f"resumed after epoch {done.epochs} of {plan.epochs}")

    with between_steps() as step_turn:
        for epoch in range(done.epochs, done.epochs if done.stopped_early else plan.epochs):
            began, lr = time.perf_counter(), group["lr"]
            loss_sum = torch.zeros((), device=device)
            module.train()
            for step, (x, y) in enumerate(data.train.batches(plan.batch_size, order, lone_row=False)):
                with step_turn:
                    x = x.to(device, memory_format=layout, non_blocking=True)
                    y = y.to(device, non_blocking=True)
                    with torch.autocast(device, torch.bfloat16, enabled=amp):
                        loss = loss_of(first(module(x)), y)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    for parameter, mask in frozen:
                        parameter.data.mul_(mask)
                    lr = group["lr"]
                    schedule.step()
                    loss_sum += loss.detach() * len(x)
                ctx.progress(epoch + (step + 1) / steps, plan.epochs, "epochs", phase)
                if step % LOOK_EVERY == LOOK_EVERY - 1:
                    _must_be_finite(loss_sum, epoch, lr)
            _must_be_finite(loss_sum, epoch, lr)

            row: dict[str, Any] = {"epoch": epoch + 1, "loss": loss_sum.item() / len(data.train)}
            if len(data.val):
                with step_turn:
                    found = answers(eager(module, device), data.val, sensible_batch(data.val.x.shape[1:]))
                row[f"val_{found.name}"] = value = found.value()
                if value > done.best:
                    done.best, done.best_epoch = value, epoch + 1
                    if plan.early_stopping:
                        best = {k: v.detach().clone() for k, v in module.state_dict().items()}
                if plan.early_stopping and epoch + 1 - done.best_epoch >= plan.early_stopping:
                    done.stopped_early = True
            row |= {"lr": lr, "seconds": round(time.perf_counter() - began, 4)}
            done.epochs = epoch + 1
            done.final_loss = row["loss"]
            ctx.metrics(row)
            checkpoints.save(done.state() | {"best_weights": best})
            if done.stopped_early:
                ctx.log(f"stopped after epoch {epoch + 1}: no better figure since epoch {done.best_epoch}")
                break

    if best is not None:
        module.load_state_dict(best)
    module.eval()
    return done


def _must_be_finite(loss_sum: torch.Tensor, epoch: int, lr: float) -> None:
    if not math.isfinite(loss_sum.item()):
        raise Unprocessable(
            f"the training diverged: the loss of epoch {epoch + 1} is no finite number (lr {lr:.3g})",
            code="diverged",
            hint="lower lr, or normalise the data",
        )


def _layout(module: nn.Module, data: Data, device: str) -> torch.memory_format:
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
