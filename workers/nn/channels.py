"""Pruning channels and whole heads: a smaller copy of a network, proved to be right, or why there is none."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from workers.nn.choice import Choice, choose, groups
from workers.nn.following import follow
from workers.nn.graph import LAYERS, OUTPUTS, Channel, Traced, trace
from workers.nn.proof import Broken, cut, line


@dataclass
class Thinned:
    """What came of it. before, after: channels that each layer gives. left_alone: layer → why. check: the proof.

    heads: attention block → {"before": heads, "after": heads}, for every block that was recognised.
    """

    module: nn.Module
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)
    refused: str | None = None
    check: str | None = None
    heads: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def removed(self) -> int:
        return sum(self.before.values()) - sum(self.after.values())


def thin(
    module: nn.Module,
    example: tuple[torch.Tensor, ...],
    amount: float,
    *,
    layers: Collection[str] | None = None,
    **how: Any,
) -> Thinned:
    """A copy of `module` with a share `amount` of its channels gone (see `choose` for `how`), proved to be right, or
    `module` itself and the reason in `refused`. example: inputs of two rows or more, which it must run on."""
    before = _widths(module)
    whole = Thinned(module, before, before)
    try:
        graph, closed = follow(module, example, layers)
        traced = trace(copy.deepcopy(graph), example)
    except Exception as error:  # torch.fx raises whatever a network's own forward raises when it is traced
        whole.refused = f"its graph cannot be followed: {line(error)}"
        return whole
    channels = traced.channels()
    whole.heads = _heads(traced, Choice(frozenset()))
    alone = _left_alone(channels, layers) | _inside(traced, layers, closed)
    whole.left_alone = {n: why for n, why in alone.items() if n in before}
    found = groups(channels, layers)
    choice = choose(traced, channels, found, amount, **how)
    if not choice.gone:
        return whole
    widths = _widths(traced.module)

    def without(choice: Choice) -> Thinned:
        smaller, check = cut(traced, choice, example)
        after = {name: _channels(smaller.get_submodule(name)) for name in widths}
        return Thinned(smaller, widths, after, alone, check=check, heads=_heads(traced, choice))

    try:
        return without(choice)
    except Broken as error:
        reasons = {m: str(error) for group in found for m in channels[group[0]].makers}
    # Something in the graph depends on these channels in a way that labels do not show: find out in which group.
    safe: set[int] = set()
    for group in found:
        some = Choice(choice.gone & frozenset(group))
        try:
            if some.gone:
                without(some)
            safe |= some.gone
        except Broken as error:
            alone |= dict.fromkeys(channels[group[0]].makers, f"without its channels {error}")
    try:
        if safe:
            return without(Choice(frozenset(safe)))
    except Broken as error:
        alone |= dict.fromkeys(reasons, f"without its channels {error}")
    whole.left_alone = {n: why for n, why in alone.items() if n in before}
    whole.refused = f"without the channels that were chosen {next(iter(reasons.values()))}"
    return whole


def _widths(module: nn.Module) -> dict[str, int]:
    return {
        name: _channels(layer) for name, layer in module.named_modules() if isinstance(layer, (*LAYERS, nn.Embedding))
    }


def _heads(traced: Traced, choice: Choice) -> dict[str, dict[str, int]]:
    return {
        name: {"before": len(ids), "after": int((~choice.gone_of(traced, ids)).sum())}
        for name, ids in traced.blocks().items()
    }


def _left_alone(channels: Mapping[int, Channel], layers: Collection[str] | None) -> dict[str, str]:
    """For every layer none of whose channels may go, why."""
    reasons: dict[str, str | None] = {}
    for channel in channels.values():
        why = channel.kept_by
        if why is None and layers is not None and not channel.makers <= set(layers):
            others = ", ".join(sorted(channel.makers - set(layers)))
            why = f"its channels are tied to those of {others}: name them too"
        for name in channel.makers:
            reasons[name] = None if why is None else reasons.get(name, why)
    return {n: w for n, w in reasons.items() if w is not None and (layers is None or n in layers)}


def _inside(traced: Traced, layers: Collection[str] | None, closed: Mapping[str, str]) -> dict[str, str]:
    """For every layer that the graph does not call itself, why its channels stay."""
    called = {name for name, _ in traced.uses}
    whole = {
        str(n.target): type(traced.module.get_submodule(str(n.target))).__name__
        for n in traced.module.graph.nodes
        if n.op == "call_module"
    }
    found = {}
    for name, layer in traced.module.named_modules():
        if isinstance(layer, LAYERS) and name not in called and (layers is None or name in layers):
            path = next((p for p in whole if name.startswith(f"{p}.")), None)
            found[name] = "the graph uses its weights directly, or not at all"
            if path is not None:
                found[name] = f"{whole[path]} uses it as one block" + (f": {closed[path]}" if path in closed else "")
    return found


def _channels(layer: nn.Module) -> int:
    if isinstance(layer, nn.Embedding):
        return int(layer.embedding_dim)
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def output_layers(module: nn.Module, example: tuple[torch.Tensor, ...]) -> set[str]:
    """The layers whose channels are the network's outputs; the last one where its graph cannot be followed."""
    try:
        channels = trace(follow(module, example)[0], example).channels().values()
        found = {m for c in channels if c.kept_by == OUTPUTS for m in c.makers}
    except Exception:  # torch.fx raises whatever a network's own forward raises when it is traced
        found = set()
    last = [name for name, layer in module.named_modules() if isinstance(layer, LAYERS)][-1:]
    return found or set(last)
