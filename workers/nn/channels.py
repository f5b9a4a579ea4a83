"""Pruning channels: choosing which go, taking them out of the layers and the graph, and proving that nothing broke."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from workers.nn import constants, surgery
from workers.nn.graph import LAYERS, OUTPUTS, OVER_CHANNELS, Channel, Side, Traced, shapes, trace
from workers.nn.labels import Ids, Labels
from workers.nn.predict import tensors

MOST = 0.9  # of a group goes at most when groups compete, unless more is asked for: a network of one channel is none


@dataclass(frozen=True)
class Choice:
    """Which channels go: root labels."""

    gone: frozenset[int]

    def gone_of(self, traced: Traced, ids: Ids) -> Any:
        """Whether each of these labels goes: an array of bool."""
        return np.fromiter((traced.ties.root(i) in self.gone for i in ids.tolist()), bool, len(ids))


def groups(channels: Mapping[int, Channel], layers: Collection[str] | None) -> list[list[int]]:
    """Root labels that may go, by the layers that produce them: channels of one group are each other's rivals.

    layers: only channels that these layers alone produce.
    """
    found: dict[frozenset[str], list[int]] = {}
    for root, channel in channels.items():
        if channel.kept_by is None and (layers is None or channel.makers <= set(layers)):
            found.setdefault(channel.makers, []).append(root)
    return list(found.values())


def choose(
    traced: Traced,
    channels: Mapping[int, Channel],
    found: list[list[int]],
    amount: float,
    *,
    scope: str = "layer",
    importance: str = "magnitude",
    round_to: int = 1,
    seed: int = 0,
) -> Choice:
    """The least important share `amount` of every group (scope layer), or of all of them together (scope global).

    A layer keeps a multiple of `round_to` channels where it had one, and at least one.
    """
    scores = _scores(traced, channels, found, importance, seed)
    counts = [int(amount * len(group) + 1e-9) for group in found]
    if scope == "global" and found:
        together = sorted(
            (score / (float(np.mean([scores[r] for r in group])) or 1.0), place)
            for place, group in enumerate(found)
            for score in (scores[r] for r in group)
        )
        taken = [place for _, place in together[: int(amount * len(together) + 1e-9)]]
        counts = [min(taken.count(p), int(max(MOST, amount) * len(g))) for p, g in enumerate(found)]
    gone: set[int] = set()
    for group, count in zip(found, counts, strict=True):
        width = max(len(p) for (_, side), p in channels[group[0]].members.items() if side == "out")
        step = round_to // math.gcd(round_to, width)
        keep = min(len(group), max(step, math.ceil((len(group) - count) / step) * step))
        gone.update(sorted(group, key=lambda r: (scores[r], r))[: len(group) - keep])
    return Choice(frozenset(gone))


def _scores(
    traced: Traced, channels: Mapping[int, Channel], found: list[list[int]], importance: str, seed: int
) -> dict[int, float]:
    """A number per channel: the L2 norms of its slices of every layer, each over that layer's mean, averaged."""
    roots = [r for group in found for r in group]
    if importance == "random":
        return dict(zip(roots, np.random.default_rng(seed).permutation(len(roots)).astype(float), strict=True))
    norms = {member: _norms(traced.module.get_submodule(member[0]), member[1]) for member in traced.uses}
    scores = {}
    for root in roots:
        parts = [norms[m][p].mean().item() for m, p in channels[root].members.items() if norms[m] is not None]
        scores[root] = float(np.mean(parts)) if parts else 0.0
    return scores


def _norms(layer: nn.Module, side: Side) -> Any:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return None
    weight = weight.detach()
    if side == "norm":
        found = weight.abs().reshape(-1)
    elif isinstance(layer, nn.Embedding):
        found = weight.norm(dim=0)
    else:
        axis = surgery.axis_of(layer, side)
        found = weight.transpose(0, axis).flatten(1).norm(dim=1)
        if (groups := getattr(layer, "groups", 1)) > 1 and axis == 1:  # the same position in every group
            found = found.repeat(groups)
    return found / found.mean().clamp_min(1e-12)


@dataclass
class Thinned:
    """What came of it. before, after: channels that each layer gives. left_alone: layer → why. check: the proof."""

    module: nn.Module
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)
    refused: str | None = None
    check: str | None = None

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
    before = {name: _channels(layer) for name, layer in module.named_modules() if isinstance(layer, LAYERS)}
    whole = Thinned(module, before, before)
    try:
        graph = module if isinstance(module, fx.GraphModule) else fx.symbolic_trace(module)
        traced = trace(copy.deepcopy(graph), example)
    except Exception as error:  # torch.fx raises whatever a network's own forward raises when it is traced
        whole.refused = f"its graph cannot be followed: {_line(error)}"
        return whole
    channels = traced.channels()
    whole.left_alone = _left_alone(channels, before, layers) | _inside(traced, before, layers)
    found = groups(channels, layers)
    choice = choose(traced, channels, found, amount, **how)
    if not choice.gone:
        return whole
    try:
        return _proved(traced, choice, example, whole)
    except Broken as error:
        reasons = {m: str(error) for group in found for m in channels[group[0]].makers}
    # Something in the graph depends on these channels in a way that labels do not show: find out in which group.
    safe: set[int] = set()
    for group in found:
        some = Choice(choice.gone & frozenset(group))
        try:
            if some.gone:
                _proved(traced, some, example, whole)
            safe |= some.gone
        except Broken as error:
            whole.left_alone |= dict.fromkeys(channels[group[0]].makers, f"without its channels {error}")
    try:
        if safe:
            return _proved(traced, Choice(frozenset(safe)), example, whole)
    except Broken as error:
        whole.left_alone |= dict.fromkeys(reasons, f"without its channels {error}")
    whole.refused = f"without the channels that were chosen {next(iter(reasons.values()))}"
    return whole


class Broken(Exception):
    """A network with channels gone that is not the network it should be."""


def _proved(traced: Traced, choice: Choice, example: tuple[torch.Tensor, ...], whole: Thinned) -> Thinned:
    module = copy.deepcopy(traced.module)
    kept: dict[str, surgery.Kept] = {}
    for (name, side), ids in traced.uses.items():
        gone = choice.gone_of(traced, ids)
        if gone.any():
            kept.setdefault(name, {})[side] = torch.from_numpy(np.flatnonzero(~gone))
    for name, sides in kept.items():
        surgery.cut(module.get_submodule(name), sides)
    constants.rewrite(traced, lambda ids: int((~choice.gone_of(traced, ids)).sum()), module)
    check = _prove(traced, choice, module, example)
    after = {name: _channels(module.get_submodule(name)) for name in whole.before}
    return Thinned(module, whole.before, after, whole.left_alone, check=check)


def _prove(traced: Traced, choice: Choice, module: fx.GraphModule, example: tuple[torch.Tensor, ...]) -> str:
    """Runs it: every node must have the shape that its labels say, and, where that is defined, the outputs must be
    those of the whole network with the same channels at zero. Raises Broken."""
    try:
        now = shapes(module, example)
    except Exception as error:
        raise Broken(f"the network does not run: {_line(error)}") from error
    for node, twin in zip(traced.module.graph.nodes, module.graph.nodes, strict=True):
        labels, value = traced.labels[node], now[twin]
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
    worst = max(_distance(module, masked, inputs) for inputs in (example, _longer(example)))
    if not worst < 1e-3:
        raise Broken(f"the outputs differ by {worst:.3g} from those with the channels at zero")
    return f"equal to the whole network with these channels at zero within {worst:.1e}"


def _longer(example: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The same with a row more, where all inputs have rows."""
    rows = {t.shape[0] if t.dim() else None for t in example}
    return tuple(torch.cat([t, t[:1]]) for t in example) if len(rows) == 1 and None not in rows else example


def _distance(module: nn.Module, masked: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """max |difference| ÷ max |wanted| over the outputs; 0 where the whole network does not run either."""
    with torch.no_grad():
        try:
            wanted = tensors(masked(*(t.clone() for t in inputs)))
        except RuntimeError:
            return 0.0
        try:
            found = tensors(module(*(t.clone() for t in inputs)))
        except Exception as error:
            raise Broken(f"the network does not run on {len(inputs[0])} rows: {_line(error)}") from error
    worst = 0.0
    for have, want in zip(found, wanted, strict=True):
        if have.shape != want.shape:
            raise Broken(f"an output has the shape {list(have.shape)} instead of {list(want.shape)}")
        if want.numel():
            scale = want.double().abs().max().clamp_min(1e-6)
            worst = max(worst, float((have.double() - want.double()).abs().max() / scale))
    return worst


def _left_alone(
    channels: Mapping[int, Channel], before: Mapping[str, int], layers: Collection[str] | None
) -> dict[str, str]:
    """For every layer none of whose channels may go, why."""
    reasons: dict[str, str | None] = {}
    for channel in channels.values():
        why = channel.kept_by
        if why is None and layers is not None and not channel.makers <= set(layers):
            others = ", ".join(sorted(channel.makers - set(layers)))
            why = f"its channels are tied to those of {others}: name them too"
        for name in channel.makers:
            reasons[name] = None if why is None else reasons.get(name, why)
    found = {n: w for n, w in reasons.items() if w is not None and (layers is None or n in layers)}
    return {n: w for n, w in found.items() if n in before}


def _inside(traced: Traced, before: Mapping[str, int], layers: Collection[str] | None) -> dict[str, str]:
    """For every layer that the graph does not call itself, why its channels stay."""
    called = {name for name, _ in traced.uses}
    whole = {
        str(n.target): type(traced.module.get_submodule(str(n.target))).__name__
        for n in traced.module.graph.nodes
        if n.op == "call_module"
    }
    found = {}
    for name in before:
        if name not in called and (layers is None or name in layers):
            owner = next((k for p, k in whole.items() if name.startswith(f"{p}.")), None)
            found[name] = (
                f"{owner} uses it as one block" if owner else "the graph uses its weights directly, or not at all"
            )
    return found


def _channels(layer: nn.Module) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def output_layers(module: nn.Module, example: tuple[torch.Tensor, ...]) -> set[str]:
    """The layers whose channels are the network's outputs; the last one where its graph cannot be followed."""
    try:
        graph = module if isinstance(module, fx.GraphModule) else fx.symbolic_trace(module)
        channels = trace(graph, example).channels().values()
        found = {m for c in channels if c.kept_by == OUTPUTS for m in c.makers}
    except Exception:  # torch.fx raises whatever a network's own forward raises when it is traced
        found = set()
    last = [name for name, layer in module.named_modules() if isinstance(layer, LAYERS)][-1:]
    return found or set(last)
