"""train: fine-tunes a network, or trains it from scratch."""

from __future__ import annotations

import torch
from torch import nn

from app.domain.specs import TrainSpec
from workers.context import Context
from workers.net import load
from workers.nn.draft import judged, torch_draft
from workers.nn.finetune import finetune
from workers.nn.masks import inherited
from workers.passes import Outcome


def run(spec: TrainSpec, ctx: Context) -> Outcome:
    """Raises Unprocessable where the data do not fit the network, or the loss is no number any more."""
    ctx.progress(0, spec.epochs, "epochs", "loading")
    source, folder = ctx.source()
    net = load(folder, source)
    data = ctx.dataset().fit_to(net.signature)
    masks = inherited(net, source)
    fixed = draw_anew(net.module, spec.seed, masks) if spec.from_scratch else []
    ctx.log(
        f"training {source.ref} on {len(data.train)} rows of {data.ref}, validating on {len(data.val)}; "
        f"{spec.optimizer}, {spec.schedule}, lr {spec.lr:g}, batch {spec.batch_size}, on {ctx.device}"
    )
    fitted = finetune(net, None, None, data, spec, ctx, masks=masks, phase="training")
    found = judged(net, data, ctx)
    folder, draft = torch_draft(net, source, ctx, data, found)
    notes = []
    if masks:
        notes.append(f"The zeros of {len(masks)} pruned layers stayed zero: they were masked after every step.")
    if fixed:
        notes.append(f"Kept as they were, because they belong to no layer that can draw them: {', '.join(fixed)}.")
    if fitted.stopped_early:
        notes.append(f"Stopped early; the weights are those of epoch {fitted.best_epoch}.")
    report = fitted.summary() | {
        "quality": draft["metrics"].model_dump(mode="json")["quality"],
        "rows": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
        "device": ctx.device,
        "sparsity": draft["sparsity"],
        "notes": notes,
    }
    return Outcome(folder, draft | {"notes": tuple(notes)}, report)


def draw_anew(module: nn.Module, seed: int, masks: dict[str, torch.Tensor]) -> list[str]:
    """Draws every layer's own initial values; masked weights stay zero. Returns the parameters left over."""
    torch.manual_seed(seed)
    drawn: set[int] = set()
    for layer in module.modules():
        reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
        if callable(reset):
            reset()
            drawn |= {id(p) for p in layer.parameters()}
    with torch.no_grad():
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if name in masks:
                parameter.mul_(masks[name])
    return [name for name, parameter in module.named_parameters() if id(parameter) not in drawn]
