"""Dense convolutions → grouped ones: which channels share a group is chosen so that most of the weights' norm is kept.

The formulation of Zhao and Luk (2019, Efficient Structured Pruning and Architecture Searching for Group Convolution):
find permutations of the channels that bring the heavy weights into the blocks on the diagonal, which are what is kept.
Here the permutations are those of the network's lines, folded into the neighbouring layers, so that they cost nothing;
and they are found for all layers together, line by line, each an exact assignment (scipy) while the others stand still.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import fx, nn
from torch.nn.modules import conv

from workers.nn.graph import Member, trace
from workers.nn.labels import Ids
from workers.nn.lines import Line, distance, lines, permute, sources
from workers.nn.sites import is_transposed, line, weight_of

Matrix = npt.NDArray[np.float64]
SWEEPS, STARTS, WORK = 40, 12, 2e6
# Sums in another order differ by rounding; a channel that was mixed up differs by far more.
SAME = 1e-3


@dataclass
class Folded:
    """module: computes what the network before computes. moved: layer → the sides whose channels changed places."""

    module: fx.GraphModule
    moved: dict[str, list[str]] = field(default_factory=dict)
    pinned: dict[str, str] = field(default_factory=dict)
    check: float = 0.0
    why_not: str | None = None


def energies(layer: nn.Module) -> Matrix:
    """The squared norm of every kernel: (out channels, in channels)."""
    weight = weight_of(layer).detach().double()
    found = weight.flatten(2).square().sum(2) if weight.dim() > 2 else weight.square()
    return np.asarray((found.T if is_transposed(layer) else found).cpu())


def kept(energy: Matrix, groups: int) -> float:
    """The part of the squared norm that lies in the blocks on the diagonal."""
    out, taken = energy.shape
    return float(np.einsum("goga->", energy.reshape(groups, out // groups, groups, taken // groups)))


def assign(energy: Mapping[str, Matrix], groups: int, found: list[Line], seed: int, starts: int = STARTS) -> list[Ids]:
    """For every line, which of its channels comes to each of its places: the kept norm of all layers together is the
    largest that was found, from the order as it is and from others drawn at random, and never below that as it is."""
    rng = np.random.default_rng(seed)
    best: tuple[float, list[Ids]] | None = None
    work = sum(len(one) ** 2 for one in found)
    for start in range(int(np.clip(WORK / max(1, work), 1, starts))):
        begin = [np.arange(len(one)) if start == 0 else rng.permutation(len(one)) for one in found]
        ascent = _Ascent(energy, groups, found, begin)
        total = ascent.climb()
        if best is None or total > best[0] * (1 + 1e-9):
            best = total, ascent.places
    return best[1] if best else []


class _Ascent:
    """Coordinate ascent over the lines. order: of every side of every layer that is grouped."""

    def __init__(self, energy: Mapping[str, Matrix], groups: int, found: list[Line], places: list[Ids]) -> None:
        self.energy, self.groups, self.lines, self.places = energy, groups, found, places
        self.enough = 1e-6 if sum(len(one) ** 2 for one in found) <= WORK else 1e-3
        self.order: dict[Member, Ids] = {}
        for name, matrix in energy.items():
            self.order[name, "out"] = np.arange(matrix.shape[0])
            self.order[name, "in"] = np.arange(matrix.shape[1])
        for one, chosen in zip(found, places, strict=True):
            self._set(one, chosen)

    def climb(self) -> float:
        total = self._total(self.energy)
        for _ in range(SWEEPS):
            before = total
            for place, one in enumerate(self.lines):
                total += self._improve(place, one)
            if total <= before * (1 + self.enough):
                break
        return total

    def _improve(self, place: int, one: Line) -> float:
        """The best assignment of one line while the others stay, where it is better: what it gains."""
        names = {name for name, _ in one.slots} & self.energy.keys()
        before = self._total(names)
        _, to = linear_sum_assignment(self._gains(one), maximize=True)
        chosen = np.empty(len(one), np.int64)
        chosen[to] = np.arange(len(one))
        self._set(one, chosen)
        gained = self._total(names) - before
        if gained <= 1e-9 * before:  # a line on both sides of one layer: the gains were only an estimate
            self._set(one, self.places[place])
            return 0.0
        self.places[place] = chosen
        return gained

    def _gains(self, one: Line) -> Matrix:
        """The energy that is kept when a channel (row) comes to a place (column)."""
        gains = np.zeros((len(one), len(one)))
        for (name, side), slots in one.slots.items():
            if name not in self.energy or side == "norm":
                continue
            matrix = self.energy[name] if side == "out" else self.energy[name].T
            across = self.order[name, "in" if side == "out" else "out"]
            by_group = matrix[:, across].reshape(len(matrix), self.groups, -1).sum(2)
            group = np.arange(len(matrix)) // (len(matrix) // self.groups)
            for column in slots.T:
                gains += by_group[column][:, group[column]]
        return gains

    def _total(self, names: Any) -> float:
        return sum(kept(self.energy[n][np.ix_(self.order[n, "out"], self.order[n, "in"])], self.groups) for n in names)

    def _set(self, one: Line, chosen: Ids) -> None:
        for (name, side), slots in one.slots.items():
            if name in self.energy and side != "norm":
                self.order[name, side][slots] = slots[chosen]


def fold(
    graph: fx.GraphModule,
    example: tuple[torch.Tensor, ...],
    layers: list[str],
    groups: int,
    seed: int,
    starts: int = STARTS,
) -> Folded:
    """A copy of the graph with its channels in the order that suits these layers' groups best, proved by running both.

    Lines whose order turns out to matter stay as they are.
    """
    try:
        traced = trace(graph, example)
        channels = traced.channels()
    except Exception as error:  # an operation that cannot be run apart from the rest
        return Folded(copy.deepcopy(graph), why_not=f"its graph cannot be followed: {line(error)}")
    energy = {name: energies(graph.get_submodule(name)) for name in layers}
    found = lines(graph, channels, layers)
    pinned = {name: c.kept_by for c in channels.values() if c.kept_by for name, _ in c.members if name in energy}
    folded = _proved(graph, example, found, assign(energy, groups, found, seed, starts))
    if folded.check >= SAME:
        found = [one for one in found if _proved(graph, example, [one], [_reversed(one)]).check < SAME]
        folded = _proved(graph, example, found, assign(energy, groups, found, seed, starts))
    if folded.check >= SAME:
        return Folded(copy.deepcopy(graph), why_not="the network depends on the order of its channels")
    folded.pinned = pinned
    return folded


def group(layer: nn.Module, groups: int) -> float:
    """Makes a dense convolution a grouped one, in place: only the blocks on the diagonal stay. Returns the share of the
    weights' norm that does, 0 to 1. Raises ValueError where the groups do not divide the channels."""
    assert isinstance(layer, conv._ConvNd)
    if layer.groups != 1 or layer.in_channels % groups or layer.out_channels % groups:
        raise ValueError(f"{groups} groups of {layer.in_channels} and {layer.out_channels} channels")
    weight = layer.weight.detach()
    n, m = weight.shape[0] // groups, weight.shape[1] // groups
    blocks = [weight[g * n : (g + 1) * n, g * m : (g + 1) * m] for g in range(groups)]
    block = torch.cat(blocks).clone()
    layer.weight = nn.Parameter(block, layer.weight.requires_grad)
    layer.groups = groups
    return float(block.double().norm() / weight.double().norm().clamp_min(1e-300))


def _proved(graph: fx.GraphModule, example: tuple[torch.Tensor, ...], found: list[Line], places: list[Ids]) -> Folded:
    orders = sources(graph, found, places)
    module = copy.deepcopy(graph)
    permute(module, orders)
    moved: dict[str, list[str]] = {}
    for name, side in orders:
        moved.setdefault(name, []).append(side)
    return Folded(module, moved, check=distance(graph, module, example) if orders else 0.0)


def _reversed(one: Line) -> Ids:
    return np.arange(len(one))[::-1].copy()
