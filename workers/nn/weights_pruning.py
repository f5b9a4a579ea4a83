"""Zeros in the weights: the least important ones, whole rows of them, or all but n of m in a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

from app.domain.specs import PruneSpec

Layers = Mapping[str, nn.Module]
Scores = Mapping[str, torch.Tensor]
# Below every importance that is a number of its own, above that of a weight which is zero already.
_LEAST = 1e-30


@dataclass
class Zeroed:
    """masks: parameter name → what stays. left_alone: layer → why. spared: layers of which one weight, or one row, was
    left although the amount would have taken it."""

    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)
    spared: list[str] = field(default_factory=list)


def zero(spec: PruneSpec, layers: Layers, amount: float, saliency: Scores | None = None) -> Zeroed:
    """Sets weights of `layers` to zero, in place, by torch.nn.utils.prune, until a share `amount` of each (scope layer)
    or of all together (scope global) is zero; those that are zero already count. No layer loses its last weight.

    amount: of n_m, as a share of m. saliency: an importance for every weight, by parameter name, instead of its size.
    """
    found = Zeroed()
    own: dict[int, str] = {}
    for name, layer in layers.items():  # weights that several layers share lose their part once
        own.setdefault(id(weight_of(layer)), name)
    cut = {name: layers[name] for name in own.values()}
    scores = {name: _scores(spec, n, name, layer, saliency) for n, (name, layer) in enumerate(cut.items())}
    if spec.method == "n_m":
        _n_of_m(spec, cut, scores, amount, found)
    elif spec.method == "ln_structured":
        _rows(spec, cut, scores, amount, found)
    elif spec.scope == "global":
        _together(cut, scores, amount, found)
    else:
        _each(cut, scores, amount, found)
    for name, layer in layers.items():
        if prune.is_pruned(layer):
            prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
        if name not in found.left_alone:
            found.masks[f"{name}.weight"] = weight_of(layer).detach() != 0
    return found


def weight_of(layer: nn.Module) -> torch.Tensor:
    """A prunable layer's weight."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def input_axis(layer: nn.Module) -> int:
    """Where a weight holds the channels that go in."""
    return 0 if getattr(layer, "transposed", False) else 1


def fits_n_m(layer: nn.Module, m: int) -> str | None:
    """Why weights of this layer cannot be taken in rows of m along the input axis; None: they can."""
    size = weight_of(layer).shape[input_axis(layer)]
    groups = int(getattr(layer, "groups", 1))
    if getattr(layer, "transposed", False):
        size //= groups
    told = f" in each of its {groups} groups" if groups > 1 else ""
    return f"its input size{told} is {size}, which {m} does not divide" if size % m else None


def holds_n_m(layer: nn.Module, n: int, m: int) -> bool:
    """Whether of m weights in a row at most n are not zero."""
    weight = weight_of(layer).detach().movedim(input_axis(layer), -1)
    return bool(((weight.reshape(-1, m) != 0).sum(dim=1) <= n).all())


def _scores(spec: PruneSpec, place: int, name: str, layer: nn.Module, saliency: Scores | None) -> torch.Tensor:
    weight = weight_of(layer).detach()
    if spec.method == "random_unstructured" or spec.importance == "random":
        # The same at every step of one job, so that what is gone stays gone and the shares add up.
        drawn = torch.Generator().manual_seed((spec.seed * 100_003 + place) % 2**63)
        return torch.rand(weight.shape, generator=drawn) + _LEAST
    if saliency is not None:
        return torch.where(weight == 0, 0.0, saliency[f"{name}.weight"].float().clamp_min(_LEAST))
    return weight.abs().contiguous()


def _each(layers: Layers, scores: Scores, amount: float, found: Zeroed) -> None:
    for name, layer in layers.items():
        count, of = round(amount * scores[name].numel()), scores[name].numel()
        if count >= of:
            found.spared.append(name)
        prune.L1Unstructured.apply(layer, "weight", min(count, of - 1), importance_scores=scores[name])  # type: ignore[no-untyped-call]


def _together(layers: Layers, scores: Scores, amount: float, found: Zeroed) -> None:
    best = {}
    for name, values in scores.items():
        best[name] = values.argmax()
        values.view(-1)[best[name]] = torch.inf  # each layer's best weight stays, or nothing would pass it any more
    of = sum(values.numel() for values in scores.values())
    prune.global_unstructured(
        [(layer, "weight") for layer in layers.values()],
        pruning_method=prune.L1Unstructured,
        importance_scores={(layer, "weight"): scores[name] for name, layer in layers.items()},
        amount=min(round(amount * of), of - len(layers)),
    )
    found.spared += [n for n, layer in layers.items() if int((weight_of(layer) != 0).sum()) <= 1 < scores[n].numel()]


def _rows(spec: PruneSpec, layers: Layers, scores: Scores, amount: float, found: Zeroed) -> None:
    for name, layer in layers.items():
        axis = int(bool(getattr(layer, "transposed", False)))
        of = weight_of(layer).shape[axis]
        count = round(amount * of)
        if count >= of:
            found.spared.append(name)
        norm = spec.norm if spec.importance == "magnitude" else 1  # of importances: their sum
        given: dict[str, Any] = {"n": norm, "dim": axis, "importance_scores": scores[name]}
        prune.LnStructured.apply(layer, "weight", min(count, of - 1), **given)  # type: ignore[no-untyped-call]


def _n_of_m(spec: PruneSpec, layers: Layers, scores: Scores, amount: float, found: Zeroed) -> None:
    """The n largest of m along the input axis stay (Mishra et al. 2021, "Accelerating sparse deep neural networks")."""
    gone = min(spec.m - 1, round(amount * spec.m))
    for name, layer in layers.items():
        if why := fits_n_m(layer, spec.m):
            found.left_alone[name] = why
            continue
        axis = input_axis(layer)
        rows = scores[name].movedim(axis, -1)
        least = rows.reshape(-1, spec.m).topk(gone, dim=1, largest=False).indices
        stays = torch.ones(rows.numel() // spec.m, spec.m).scatter_(1, least, 0.0)
        mask = stays.reshape(rows.shape).movedim(-1, axis).contiguous()
        prune.custom_from_mask(layer, "weight", mask)  # type: ignore[no-untyped-call]
