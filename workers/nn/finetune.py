"""Fine-tuning a network that was made smaller: it learns from the data, and from the version that it came from."""

from __future__ import annotations

import math

from torch import nn

from app.domain.records import Version
from app.domain.specs import Training
from workers.context import Context
from workers.net import Net
from workers.nn.data import Data
from workers.nn.fit import Fitted, Masks, fit
from workers.nn.teacher import open_teacher

CLIP_NORM = 1.0


def finetune(
    net: Net,
    source: Version | None,
    module: nn.Module | None,
    data: Data,
    plan: Training,
    ctx: Context,
    *,
    masks: Masks | None = None,
    phase: str = "fine-tuning",
) -> Fitted:
    """`fit` of `net.module`, in place, with a teacher: the version that the plan names, else `source`, the version that
    the network came from; none where plan.alpha is 0, or `source` is None and the plan names none.

    With a `source`, the network as it is counts as an epoch of its own where the best epoch is kept, and `worsened`
    can tell. module: the network of `source` where it is in hand, unchanged and in no other use; None: it is loaded
    afresh.
    Raises what `fit` and `open_teacher` do.
    """
    if source is not None or plan.teacher is not None:
        plan = bounded(plan, data)
    ref, start = plan.teacher or (source.ref if source is not None else None), source is not None
    if ref is None or plan.alpha == 0:
        return fit(net.module, data, plan, ctx, masks=masks, phase=phase, start_counts=start)
    usable = module if plan.teacher is None and module is not net.module else None
    teacher = open_teacher(ref, data, ctx, usable)
    try:
        return fit(net.module, data, plan, ctx, masks=masks, phase=phase, teacher=teacher, start_counts=start)
    finally:
        teacher.close()


def worsened(fitted: Fitted, which: str = "") -> str | None:
    """What to say where training made it no better than it was before; None where it did. which: of several."""
    before, after = fitted.before, fitted.after
    if before is None or after is None:
        return None
    if fitted.best_epoch == 0 and math.isfinite(fitted.best):
        return (
            f"No epoch of the fine-tuning{which} was better than the network before it ({before:.4f} on the validation "
            "split), whose weights were kept. A lower lr, or more epochs, may help."
        )
    if after >= before:
        return None
    return (
        f"Fine-tuning{which} made it worse: {after:.4f} on the validation split, {before:.4f} before it. A lower "
        "lr, or more epochs, may help; with `early_stopping` the best weights are kept."
    )


def bounded(plan: Training, data: Data) -> Training:
    """The plan with a bound on its steps, where it says none and classes are learnt.

    What lost half of its channels is far from any minimum, and a teacher's answers count T² times: unbounded steps of a
    usual learning rate then ruin the network for good. Errors of numbers have the scale of the targets, and no bound.
    """
    if plan.clip_norm is not None or data.task != "classification" or plan.loss == "mse":
        return plan
    return plan.model_copy(update={"clip_norm": CLIP_NORM})
