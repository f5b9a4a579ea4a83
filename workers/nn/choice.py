"""Choosing which channels go: groups of rivals, a number for the importance of each, and how many of every group."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from workers.nn import surgery
from workers.nn.graph import Channel, Side, Traced
from workers.nn.labels import Ids

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


def sizes(channels: Mapping[int, Channel], found: list[list[int]]) -> dict[frozenset[str], int]:
    """How many channels every group has, by the layers that produce them."""
    return {channels[group[0]].makers: len(group) for group in found}


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
    saliency: Mapping[str, torch.Tensor] | None = None,
    whole: Mapping[frozenset[str], int] | None = None,
) -> Choice:
    """The least important share `amount` of every group (scope layer), or of all of them together (scope global).

    A layer keeps a multiple of `round_to` channels where it had one, and at least one; attention, of heads.
    saliency: the importance of every element of the parameters that it names, all ≥ 0, instead of their magnitudes.
    whole: of several prunings, how large every group was before the first: `amount` is a share of that, see `sizes`.
    """
    scores = _scores(traced, channels, found, importance, seed, saliency or {})
    of = [(whole or {}).get(channels[group[0]].makers, len(group)) for group in found]
    earlier = [n - len(group) for n, group in zip(of, found, strict=True)]
    counts = [max(0, int(amount * n + 1e-9) - before) for n, before in zip(of, earlier, strict=True)]
    if scope == "global" and found:
        together = sorted(
            (score / (float(np.mean([scores[r] for r in group])) or 1.0), place)
            for place, group in enumerate(found)
            for score in (scores[r] for r in group)
        )
        taken = [place for _, place in together[: max(0, int(amount * sum(of) + 1e-9) - sum(earlier))]]
        most = [max(0, int(max(MOST, amount) * n) - before) for n, before in zip(of, earlier, strict=True)]
        counts = [min(taken.count(p), most[p]) for p in range(len(found))]
    heads = traced.head_roots()
    gone: set[int] = set()
    for group, count in zip(found, counts, strict=True):
        width = max(len(p) for (_, side), p in channels[group[0]].members.items() if side == "out")
        step = round_to if group[0] in heads else round_to // math.gcd(round_to, width)
        keep = min(len(group), max(step, math.ceil((len(group) - count) / step) * step))
        gone.update(sorted(group, key=lambda r: (scores[r], r))[: len(group) - keep])
    return Choice(frozenset(gone))


def _scores(
    traced: Traced,
    channels: Mapping[int, Channel],
    found: list[list[int]],
    importance: str,
    seed: int,
    saliency: Mapping[str, torch.Tensor],
) -> dict[int, float]:
    """A number per channel: the norms of its slices of every layer, each over that layer's mean, averaged."""
    roots = [r for group in found for r in group]
    if importance == "random":
        return dict(zip(roots, np.random.default_rng(seed).permutation(len(roots)).astype(float), strict=True))
    norms = {}
    for name, side in traced.uses:
        given = next((saliency[w] for w in (f"{name}.weight", f"{name}_weight") if w in saliency), None)
        norms[name, side] = _norms(traced.module.get_submodule(name), side, given)
    scores = {}
    for root in roots:
        slices = [n[p] for m, p in channels[root].members.items() if (n := norms[m]) is not None]
        scores[root] = float(np.mean([s.mean() for s in slices])) if slices else 0.0
    return scores


def _norms(layer: nn.Module, side: Side, saliency: torch.Tensor | None) -> npt.NDArray[np.float64] | None:
    """The L2 norm of every channel's slice of the weight, or the L1 norm of the saliency's, over their mean."""
    weight = getattr(layer, "weight", None) if saliency is None else saliency
    if not isinstance(weight, torch.Tensor):
        return None
    weight, order = weight.detach().cpu().double(), 2 if saliency is None else 1
    if side == "norm":
        found = weight.abs().reshape(-1)
    elif isinstance(layer, nn.Embedding):
        found = weight.norm(order, dim=0)
    else:
        axis = surgery.axis_of(layer, side)
        found = weight.transpose(0, axis).flatten(1).norm(order, dim=1)
        if (copies := getattr(layer, "groups", 1)) > 1 and axis == 1:  # the same position in every group
            found = found.repeat(copies)
    norms: npt.NDArray[np.float64] = (found / found.mean().clamp_min(1e-12)).numpy()
    return norms
