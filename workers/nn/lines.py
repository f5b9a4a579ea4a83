"""Lines: channels that can change places without changing what a network computes, and the changing itself.

Channels of one line are used by the same sides of the same layers, equally often each (`graph.trace` finds where): when
all of these layers follow, their order is free. Pool and Yu (2021) fold permutations into neighbours in this way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules import conv

from workers.nn import surgery
from workers.nn.graph import NORMS, OVER_CHANNELS, Channel, Member, Side
from workers.nn.labels import Ids
from workers.nn.predict import tensors

MOVABLE = (conv._ConvNd, nn.Linear, nn.Embedding, *NORMS, *OVER_CHANNELS)


@dataclass(frozen=True)
class Line:
    """slots: for every layer and side, the positions of every channel: (channels, positions of each)."""

    slots: dict[Member, Ids]

    def __len__(self) -> int:
        return len(next(iter(self.slots.values())))


def lines(module: nn.Module, channels: Mapping[int, Channel], layers: Collection[str]) -> list[Line]:
    """The lines of two channels or more that these layers take or give. channels: of a Traced."""
    alike: dict[frozenset[tuple[Member, int]], list[Channel]] = {}
    for channel in channels.values():
        if channel.kept_by is None:
            key = frozenset((member, len(positions)) for member, positions in channel.members.items())
            alike.setdefault(key, []).append(channel)
    found = []
    for key, members in alike.items():
        names = {name for (name, _), _ in key}
        movable = all(isinstance(module.get_submodule(name), MOVABLE) for name in names)
        if len(members) > 1 and movable and not names.isdisjoint(layers):
            slots = {
                member: np.asarray([sorted(c.members[member]) for c in members], np.int64)
                for member, _ in sorted(key, key=str)
            }
            found.append(Line(slots))
    return found


def sources(module: nn.Module, found: list[Line], places: list[Ids]) -> dict[Member, Ids]:
    """For every layer and side that changes: which position each position is filled from.

    places: per line, which of its channels comes to each of its places.
    """
    orders: dict[Member, Ids] = {}
    for line, chosen in zip(found, places, strict=True):
        for member, slots in line.slots.items():
            name, side = member
            order = orders.setdefault(member, np.arange(_size(module.get_submodule(name), side), dtype=np.int64))
            order[slots] = slots[chosen]
    return {m: o for m, o in orders.items() if (o != np.arange(len(o))).any()}


def permute(module: nn.Module, orders: Mapping[Member, Ids]) -> None:
    """Puts the channels of layers into another order, in place: position p gets what was at orders[…][p]."""
    for (name, side), order in orders.items():
        layer, where = module.get_submodule(name), torch.from_numpy(order)
        if side == "norm":
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                _reorder(layer, tensor, 0, where)
            continue
        axis, groups = surgery.axis_of(layer, side), getattr(layer, "groups", 1)
        if groups == 1 or axis == 0:
            _reorder(layer, "weight", axis, where)
        elif groups != getattr(layer, "in_channels", None):  # every group keeps the same order
            _reorder(layer, "weight", axis, where[: len(where) // groups])
        if side == "out" and not isinstance(layer, nn.Embedding):
            _reorder(layer, "bias", 0, where)


def distance(one: fx.GraphModule, other: fx.GraphModule, example: tuple[torch.Tensor, ...]) -> float:
    """max |difference| ÷ max |value| over the outputs; infinite where they do not compare."""
    with torch.no_grad():
        wanted, found = (tensors(m(*(t.clone() for t in example))) for m in (one, other))
    worst = 0.0
    for have, want in zip(found, wanted, strict=True):
        if want.numel():
            gap = float((have.double() - want.double()).abs().max() / want.double().abs().max().clamp_min(1e-6))
            worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def _size(layer: nn.Module, side: Side) -> int:
    if side == "norm":
        sizes = [t for t in (getattr(layer, n, None) for n in ("weight", "running_mean")) if t is not None]
        shape = getattr(layer, "normalized_shape", None)
        known = len(sizes[0]) if sizes else shape[0] if shape else None
        return int(known or getattr(layer, "num_channels", 0) or layer.num_features)  # type: ignore[arg-type]
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim
    if isinstance(layer, nn.Linear):
        return layer.in_features if side == "in" else layer.out_features
    assert isinstance(layer, conv._ConvNd)
    return layer.in_channels if side == "in" else layer.out_channels


def _reorder(layer: nn.Module, name: str, axis: int, order: torch.Tensor) -> None:
    tensor = getattr(layer, name, None)
    if isinstance(tensor, torch.Tensor):
        with torch.no_grad():
            tensor.copy_(tensor.index_select(axis, order.to(tensor.device)))
