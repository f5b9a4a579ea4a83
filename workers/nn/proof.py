"""Taking channels out of a copy of a network, and proving that it is the network that it should be."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import fx, nn

from workers.nn import constants, surgery
from workers.nn.choice import Choice
from workers.nn.graph import OVER_CHANNELS, Traced, shapes
from workers.nn.labels import Labels
from workers.nn.predict import tensors

Twins = dict[fx.Node, fx.Node]  # nodes of the whole network → those of the smaller one
Example = tuple[torch.Tensor, ...]


class Broken(Exception):
    """A network with channels gone that is not the network it should be."""


def cut(traced: Traced, choice: Choice, example: Example) -> tuple[fx.GraphModule, str]:
    """A copy without these channels, and what was proved of it. Raises Broken."""
    module = copy.deepcopy(traced.module)
    twins = dict(zip(traced.module.graph.nodes, module.graph.nodes, strict=True))
    kept: dict[str, surgery.Kept] = {}
    for (name, side), ids in traced.uses.items():
        gone = choice.gone_of(traced, ids)
        if gone.any():
            kept.setdefault(name, {})[side] = torch.from_numpy(np.flatnonzero(~gone))
    for name, sides in kept.items():
        surgery.cut(module.get_submodule(name), sides)
    constants.rewrite(traced, lambda ids: int((~choice.gone_of(traced, ids)).sum()), twins, module)
    return module, _prove(traced, choice, module, twins, example)


def _prove(traced: Traced, choice: Choice, module: fx.GraphModule, twins: Twins, example: Example) -> str:
    """Runs it: every node must have the shape that its labels say, and, where that is defined, the outputs must be
    those of the whole network with the same channels at zero. Raises Broken."""
    try:
        now = shapes(module, example)
    except Exception as error:
        raise Broken(f"the network does not run: {line(error)}") from error
    for node, twin in twins.items():
        labels, value = traced.labels[node], now.get(twin)
        if isinstance(labels, Labels) and isinstance(value, torch.Tensor):
            wanted = list(labels.shape)
            if labels.axis is not None:
                wanted[labels.axis] = int((~choice.gone_of(traced, labels.ids)).sum())
            if tuple(wanted) != tuple(value.shape):
                raise Broken(f"{node.name} gives {list(value.shape)} where {wanted} was expected")
    with torch.no_grad():
        found = tensors(module(*(t.clone() for t in example)))
    if not all(bool(t.isfinite().all()) for t in found if t.is_floating_point()):
        raise Broken("the outputs are not finite")
    affected = [name for (name, _), ids in traced.uses.items() if choice.gone_of(traced, ids).any()]
    if any(isinstance(traced.module.get_submodule(n), OVER_CHANNELS) for n in affected):
        return "every shape checked; values are not comparable, because a normalisation runs over the channels"
    masked = copy.deepcopy(traced.module)
    for (name, side), ids in traced.uses.items():
        gone = torch.from_numpy(np.flatnonzero(choice.gone_of(traced, ids)))
        if len(gone):
            surgery.zero(masked.get_submodule(name), side, gone)
    worst = max(distance(module, masked, inputs) for inputs in (example, longer(example)))
    if not worst < 1e-3:
        raise Broken(f"the outputs differ by {worst:.3g} from those with the channels at zero")
    return f"equal to the whole network with these channels at zero within {worst:.1e}"


def longer(example: Example) -> Example:
    """The same with a row more, where all inputs have rows."""
    rows = {t.shape[0] if t.dim() else None for t in example}
    return tuple(torch.cat([t, t[:1]]) for t in example) if len(rows) == 1 and None not in rows else example


def distance(module: nn.Module, wanted: nn.Module, inputs: Example) -> float:
    """max |difference| ÷ max |wanted| over the outputs; 0 where the wanted network does not run on these inputs either.

    Raises Broken where the other does not run, or answers in other shapes.
    """
    with torch.no_grad():
        try:
            wants = tensors(wanted(*(t.clone() for t in inputs)))
        except Exception:  # whatever a network's own forward raises
            return 0.0
        try:
            found = tensors(module(*(t.clone() for t in inputs)))
        except Exception as error:
            raise Broken(f"the network does not run on {len(inputs[0])} rows: {line(error)}") from error
    worst = 0.0
    for have, want in zip(found, wants, strict=True):
        if have.shape != want.shape:
            raise Broken(f"an output has the shape {list(have.shape)} instead of {list(want.shape)}")
        if want.numel():
            scale = want.double().abs().max().clamp_min(1e-6)
            worst = max(worst, float((have.double() - want.double()).abs().max() / scale))
    return worst


def line(error: Exception) -> str:
    """An error in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
