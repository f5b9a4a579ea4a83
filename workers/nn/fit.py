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
from workers.nn.augment import augment_for
from workers.nn.checkpoint import PERIOD_S, Checkpoints, Weights
from workers.nn.data import Data
from workers.nn.device import autocast, bf16, layout, plain
from workers.nn.loss import distillation_for, loss_for
from workers.nn.measure import between_steps
from workers.nn.predict import eager, first, sensible_batch
from workers.nn.quality import Answers, answers
from workers.nn.schedule import optimizer_for, schedule_for
from workers.nn.teacher import Teacher

LOOK_EVERY = 100  # steps between two looks at whether the loss is still a number: each look waits for a GPU

Masks = Mapping[str, torch.Tensor]


@dataclass
class Fitted:
    """How a training went. best: the best validation figure, after epoch `best_epoch` (from 1; 0: before the first).

    before: the validation figure at the start, where it was asked for; after: that of the weights that came of it.
    final_loss: towards the targets; final_distillation_loss: towards the teacher's answers, T² included, alpha not.
    """

    epochs: int = 0
    best: float = -math.inf
    best_epoch: int = 0
    before: float | None = None
    after: float | None = None
    stopped_early: bool = False
    resumed_at: int | None = None
    final_loss: float | None = None
    final_distillation_loss: float | None = None
    teacher: str | None = None
    temperature: float | None = None
    alpha: float | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {k: v for k, v in asdict(self).items() if k != "resumed_at"}

    def summary(self) -> dict[str, Any]:
        looked = {} if self.before is None else {"validation": {"before": self.before, "after": self.after}}
        return {
            "epochs": self.epochs,
            "best_epoch": self.best_epoch if math.isfinite(self.best) else None,
            "best_validation": self.best if math.isfinite(self.best) else None,
            "stopped_early": self.stopped_early,
            "resumed_at_epoch": self.resumed_at,
            "final_loss": self.final_loss,
            **looked,
        } | self._taught()

    def _taught(self) -> dict[str, Any]:
        if self.teacher is None:
            return {"teacher": None}
        return {
            "teacher": self.teacher,
            "temperature": self.temperature,
            "alpha": self.alpha,
            "final_distillation_loss": self.final_distillation_loss,
        }


def fit(
    module: nn.Module,
    data: Data,
    plan: Training,
    ctx: Context,
    *,
    masks: Masks | None = None,
    phase: str = "training",
    teacher: Teacher | None = None,
    start_counts: bool = False,
    checkpoint_s: float = PERIOD_S,
) -> Fitted:
    """Trains `module` in place on `data.train`; leaves it on `ctx.device`, in eval mode.

    masks: parameter name → bool; where it is False the weight stays zero. teacher: whose answers are learnt too, with
    the loss (1 - alpha)·(towards the targets) + alpha·(towards the answers), see `distillation_for`. start_counts: the
    network is measured before the first epoch, and where the best epoch is kept, that counts as one. Resumes from the
    checkpoint of an earlier attempt, if there is one, to the same result. Raises Unprocessable: `diverged`, or a loss
    that cannot be computed.
    """
    torch.manual_seed(plan.seed)
    order = torch.Generator().manual_seed(plan.seed)
    device = ctx.device
    format = layout(module.to(device), data, device)
    module.to(device, memory_format=format)  # type: ignore[call-overload]  # torch's stubs lack it
    halved = bf16(plan, device)
    amp = autocast(device, bf16=halved)
    loss_of = loss_for(module, data, plan, device)
    soft_loss_of = distillation_for(module, data, plan, device, teacher) if teacher is not None else None
    augment = augment_for(data, plan)
    steps = len(data.train.cuts(plan.batch_size, lone_row=False))
    optimizer = optimizer_for(module, plan)
    schedule = schedule_for(optimizer, plan, steps)
    named = module.named_parameters(remove_duplicate=False)  # masks may use any name of a parameter that is shared
    frozen = [(p, masks[n].to(device)) for n, p in named if masks and n in masks]
    checkpoints = Checkpoints(ctx, module, optimizer, schedule, order, checkpoint_s)
    best: Weights | None = None
    done = Fitted()
    if teacher is not None:
        done.teacher, done.temperature, done.alpha = teacher.ref, plan.temperature, plan.alpha
    if (saved := checkpoints.load()) is not None:
        best, done = saved.pop("best_weights"), Fitted(**saved, resumed_at=saved["epochs"])
        ctx.log(f"resumed after epoch {done.epochs} of {plan.epochs}")
    group = optimizer.param_groups[0]  # a checkpoint puts others in their place
    epochs = range(done.epochs, done.epochs if done.stopped_early else plan.epochs)

    with between_steps() as step_turn:
        if start_counts and saved is None and len(data.val):
            with step_turn:
                done.before = done.after = _on_val(module, data, device).value()
            if plan.early_stopping:
                done.best, best = done.before, _copied(module)
        if teacher is not None and epochs:
            teacher.prepare(data, plan, ctx, step_turn, bf16=halved)
        for epoch in epochs:
            began, lr = time.perf_counter(), group["lr"]
            loss_sum, soft_sum = torch.zeros((), device=device), torch.zeros((), device=device)
            module.train()
            for step, rows in enumerate(data.train.picks(plan.batch_size, order, lone_row=False)):
                x, y = data.train.take(rows)
                with step_turn:
                    x = x.to(device, memory_format=format, non_blocking=True)
                    y = y.to(device, non_blocking=True)
                    if augment is not None:
                        x = augment(x).to(memory_format=format)
                    with amp:
                        output = first(module(x))
                        loss = loss_of(output, y)
                        loss_sum += loss.detach() * len(x)
                        if teacher is not None and soft_loss_of is not None:
                            soft_loss = soft_loss_of(output, teacher.answers(x, rows))
                            soft_sum += soft_loss.detach() * len(x)
                            loss = (1 - plan.alpha) * loss + plan.alpha * soft_loss
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    if plan.clip_norm is not None:
                        nn.utils.clip_grad_norm_(module.parameters(), plan.clip_norm)
                    optimizer.step()
                    for parameter, mask in frozen:
                        parameter.data.mul_(mask)
                    lr = group["lr"]
                    schedule.step()
                ctx.progress(epoch + (step + 1) / steps, plan.epochs, "epochs", phase)
                if step % LOOK_EVERY == LOOK_EVERY - 1:
                    _must_be_finite(loss_sum + soft_sum, epoch, lr, teacher)
            _must_be_finite(loss_sum + soft_sum, epoch, lr, teacher)

            row: dict[str, Any] = {"epoch": epoch + 1, "loss": loss_sum.item() / len(data.train)}
            if teacher is not None:
                row["distillation_loss"] = done.final_distillation_loss = soft_sum.item() / len(data.train)
            if len(data.val):
                with step_turn:
                    found = _on_val(module, data, device)
                row[f"val_{found.name}"] = value = found.value()
                if value > done.best:
                    done.best, done.best_epoch = value, epoch + 1
                    if plan.early_stopping:
                        best = _copied(module)
                done.after = done.best if plan.early_stopping else value
                if plan.early_stopping and epoch + 1 - max(1, done.best_epoch) >= plan.early_stopping:
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
    if format == torch.channels_last:
        plain(module)
    module.eval()
    return done


def _on_val(module: nn.Module, data: Data, device: str) -> Answers:
    return answers(eager(module, device), data.val, sensible_batch(data.val.x.shape[1:]))


def _copied(module: nn.Module) -> Weights:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def _must_be_finite(loss_sum: torch.Tensor, epoch: int, lr: float, teacher: Teacher | None) -> None:
    if teacher is not None:
        teacher.check()
    if not math.isfinite(loss_sum.item()):
        raise Unprocessable(
            f"the training diverged: the loss of epoch {epoch + 1} is no finite number (lr {lr:.3g})",
            code="diverged",
            hint="lower lr, or normalise the data",
        )
