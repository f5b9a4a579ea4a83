"""Pruning in steps with a part of the fine-tuning after each: how much goes when, and how a later attempt goes on."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from torch import nn

from app.domain.records import Version
from app.domain.specs import PruneSpec
from workers.context import Context
from workers.net import WEIGHTS, Net, read_weights, rebuild, save
from workers.nn.data import Data
from workers.nn.finetune import finetune
from workers.nn.fit import Fitted
from workers.nn.predict import eager, sensible_batch
from workers.nn.quality import Answers, answers

Masks = dict[str, torch.Tensor]
Told = dict[str, Any]
# Prunes net.module so far that this share of the original is gone, notes in a report of plain data what it did, and
# gives the masks for what follows.
Cut = Callable[[Net, float, Told], Masks]


def shares(amount: float, steps: int, schedule: str) -> list[float]:
    """The share of the original that is gone after each step; the last is `amount`.

    iterative: the same share of what is left goes each time. gradual: amount · (1 - (1 - k/steps)³), the cubic schedule
    of Zhu and Gupta (2017) from a sparsity of 0. one_shot: one step, whatever `steps` says.
    """
    if schedule == "one_shot":
        return [amount]
    parts = [k / steps for k in range(1, steps)]
    if schedule == "gradual":
        return [amount * (1 - (1 - part) ** 3) for part in parts] + [amount]
    return [1 - (1 - amount) ** part for part in parts] + [amount]


def split(epochs: int, steps: int) -> list[int]:
    """Epochs after each step, `epochs` in all; what does not divide goes to the last steps."""
    return [epochs // steps + (step >= steps - epochs % steps) for step in range(steps)]


@dataclass
class Walked:
    """What came of it: the masks, what the cuts told, a line for every step, and the trainings that there were."""

    masks: Masks
    told: Told
    steps: list[dict[str, Any]]
    fits: list[Fitted]

    def summary(self, plan: list[int]) -> dict[str, Any] | None:
        """Of all trainings together, as that of one; the best epoch counts from the first."""
        if not self.fits:
            return None
        last, earlier = self.fits[-1], sum(fitted.epochs for fitted in self.fits[:-1])
        found = last.summary() | {"epochs": earlier + last.epochs}
        if found["best_epoch"] is not None:
            found["best_epoch"] = earlier + last.best_epoch
        resumed = [(place, f.resumed_at) for place, f in enumerate(self.fits) if f.resumed_at is not None]
        if resumed:
            place, epoch = resumed[0]
            found["resumed_at_epoch"] = sum(f.epochs for f in self.fits[:place]) + epoch
        return found | ({"epochs_per_step": plan} if len(plan) > 1 else {})


@dataclass
class StepContext(Context):
    """The context of one step: its epochs count on from those before it."""

    epochs_before: int = 0
    epochs_in_all: int = 0
    steps: int = 1
    step: int = 0
    amount: float = 0.0

    def progress(self, done: float, total: float | None = None, unit: str = "", phase: str | None = None) -> None:
        if phase is not None and self.steps > 1:
            phase = f"{phase}, step {self.step + 1} of {self.steps}"
        if unit == "epochs":
            done, total = done + self.epochs_before, self.epochs_in_all
        super().progress(done, total, unit, phase)

    def metrics(self, row: dict[str, Any]) -> None:
        more = {"step": self.step + 1, "pruned": round(self.amount, 6)} if self.steps > 1 else {}
        super().metrics(row | {"epoch": self.epochs_before + int(row.get("epoch", 0))} | more)


@dataclass
class _Begun:
    """A step whose cut is made: what a later attempt finds. fits: the trainings before it."""

    step: int
    masks: Masks = field(default_factory=dict)
    told: Told = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    fits: list[Fitted] = field(default_factory=list)


def walk(
    net: Net, spec: PruneSpec, source: Version, data: Data | None, ctx: Context, cut: Cut, amount: float
) -> Walked:
    """Prunes net.module in steps, in place, until `amount` is gone, fine-tuning on `data` after each where the spec
    says so.

    An attempt that follows another goes on where that one was: the network as it was after the cut is kept beside the
    checkpoints of the training that followed it. Raises what `cut` and `finetune` raise.
    """
    plan = shares(amount, spec.steps, spec.schedule)
    epochs = split(spec.finetune.epochs if spec.finetune and data else 0, len(plan))
    looks = len(plan) > 1 and data is not None and len(data.val) > 0
    kept = ctx.staged("pruned")
    teacher = copy.deepcopy(net.module) if any(epochs) else None
    now = _resumed(kept, net) or _Begun(step=-1)
    first = max(0, now.step)
    _trim_history(ctx, now, _stage(ctx, first, plan, now.fits, epochs))
    for step in range(first, len(plan)):
        stage = _stage(ctx, step, plan, now.fits, epochs)
        if step > now.step:
            net.module.cpu()
            stage.progress(step, len(plan), "steps", "pruning")
            now.step, now.masks = step, cut(net, plan[step], now.told)
            now.steps.append({"step": step + 1, "amount": plan[step], "epochs": epochs[step]})
            if looks and data is not None:
                now.steps[step] |= _figure("pruned", _val(net, data, ctx))
            if epochs[step]:
                stage.clear_checkpoints()
                _keep(kept, net, now)
        if epochs[step] and data is not None and spec.finetune is not None:
            part = spec.finetune.model_copy(update={"epochs": epochs[step]})
            now.fits.append(finetune(net, source, teacher, data, part, stage, masks=now.masks))
        if looks and data is not None:
            now.steps[step] |= _figure("tuned", _val(net, data, ctx)) if epochs[step] else {}
        if step:
            _stage(ctx, step - 1, plan, [], epochs).clear_checkpoints()
    return Walked(now.masks, now.told, now.steps, now.fits)


def _stage(ctx: Context, step: int, plan: list[float], fits: list[Fitted], epochs: list[int]) -> StepContext:
    staged = ctx.staged(f"step-{step + 1}", scratch=ctx.scratch)  # one scratch: a teacher's answers are kept there
    return StepContext(
        **{f.name: getattr(staged, f.name) for f in fields(Context)},
        epochs_before=sum(fitted.epochs for fitted in fits),
        epochs_in_all=sum(epochs),
        steps=len(plan),
        step=step,
        amount=plan[step],
    )


def _trim_history(ctx: Context, begun: _Begun, stage: Context) -> None:
    """To the epochs that need not be done again. Within a larger whole that is not for this job to do."""
    found = stage.last_checkpoint() if begun.step >= 0 else None
    if not ctx.stage:
        ctx.catalog.trim_history(ctx.job.id, sum(f.epochs for f in begun.fits) + (found[0] if found else 0))


def _keep(kept: Context, net: Net, begun: _Begun) -> None:
    """Keeps the network, and goes on with the one that a later attempt will find: an optimizer's state belongs to
    parameters by their order, and pruning changes that."""
    folder = kept.folder("pruned")
    save(net, folder)
    told = {"told": begun.told, "steps": begun.steps, "fits": [f.state() for f in begun.fits]}
    found = {"architecture": json.dumps(net.architecture), "weights": read_weights(folder / WEIGHTS)}
    path = kept.scratch / "pruned.state"
    torch.save(found | {"masks": begun.masks, "told": json.dumps(told)}, path)
    kept.checkpoint(path, begun.step)
    path.unlink()
    net.module = _rebuilt(found).module


def _resumed(kept: Context, net: Net) -> _Begun | None:
    """Puts back the network of the newest cut that an earlier attempt made; None: there is none, or it is torn."""
    found = kept.last_checkpoint()
    if found is None:
        return None
    step, path = found
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        told = json.loads(state["told"])
        net.architecture, net.module = _rebuilt(state)
    except Exception as error:  # a torn or foreign file must not cost the job: what it kept is lost, nothing else
        kept.log(f"the network kept at step {step + 1} cannot be read ({error}); it begins anew", "warning")
        return None
    return _Begun(step, state["masks"], told["told"], told["steps"], [Fitted(**f) for f in told["fits"]])


class _Rebuilt(NamedTuple):
    architecture: dict[str, Any]
    module: nn.Module


def _rebuilt(state: dict[str, Any]) -> _Rebuilt:
    architecture = json.loads(state["architecture"])
    return _Rebuilt(architecture, rebuild(architecture, state["weights"]))


def _val(net: Net, data: Data, ctx: Context) -> Answers:
    ctx.progress(0, None, phase="measuring accuracy")
    return answers(eager(net.module, ctx.device), data.val, sensible_batch(data.val.x.shape[1:]))


def _figure(when: str, found: Answers) -> dict[str, Any]:
    return {f"val_{found.name}_{when}": found.value()}
