"""Cutting channels out of layers: weights shrink, and the numbers that a layer keeps about its size follow."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules import batchnorm, conv, instancenorm

from workers.nn.graph import Side

Kept = dict[Side, torch.Tensor]


def axis_of(layer: nn.Module, side: Side) -> int:
    """Where a layer's weight holds what goes in (side in) or comes out (side out)."""
    if isinstance(layer, nn.Embedding):
        return 1
    return int((side == "in") != bool(getattr(layer, "transposed", False)))


def local(layer: nn.Module, side: Side, positions: torch.Tensor) -> torch.Tensor | None:
    """Channel positions as positions along `axis_of` the weight; None: the axis is the same for every channel.

    The second axis of a convolution with groups is shared by the groups, which keep the same positions each.
    """
    groups = getattr(layer, "groups", 1)
    if groups == 1 or axis_of(layer, side) == 0:
        return positions
    assert isinstance(layer, conv._ConvNd)
    if groups == layer.in_channels:  # depthwise
        return None
    return positions[positions < (layer.in_channels if side == "in" else layer.out_channels) // groups]


def cut(layer: nn.Module, kept: Kept) -> None:
    """Keeps only these positions of every side that is named."""
    if "norm" in kept:
        for name in ("weight", "bias", "running_mean", "running_var"):
            _shrink(layer, name, 0, kept["norm"])
        _resize_norm(layer, len(kept["norm"]))
        return
    for side, positions in kept.items():
        if (where := local(layer, side, positions)) is not None:
            _shrink(layer, "weight", axis_of(layer, side), where)
    if "out" in kept and not isinstance(layer, nn.Embedding):
        _shrink(layer, "bias", 0, kept["out"])
    _resize(layer, {side: len(positions) for side, positions in kept.items()})


def zero(layer: nn.Module, side: Side, gone: torch.Tensor) -> None:
    """Sets those channels to zero, where `cut` would take them away: both must come to the same in the end."""
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    with torch.no_grad():
        if isinstance(weight, torch.Tensor):
            axis = 0 if side == "norm" else axis_of(layer, side)
            where = gone if side == "norm" else local(layer, side, gone)
            if where is not None:
                weight.index_fill_(axis, where, 0)
        if isinstance(bias, torch.Tensor) and side != "in":
            bias.index_fill_(0, gone, 0)


def _resize(layer: nn.Module, sizes: dict[Side, int]) -> None:
    if isinstance(layer, conv._ConvNd):
        if layer.groups == layer.in_channels and layer.groups > 1:
            layer.groups = sizes.get("in", layer.groups)
        layer.in_channels = sizes.get("in", layer.in_channels)
        layer.out_channels = sizes.get("out", layer.out_channels)
    elif isinstance(layer, nn.Linear):
        layer.in_features = sizes.get("in", layer.in_features)
        layer.out_features = sizes.get("out", layer.out_features)
    elif isinstance(layer, nn.Embedding):
        layer.embedding_dim = sizes["out"]


def _resize_norm(layer: nn.Module, n: int) -> None:
    if isinstance(layer, (batchnorm._BatchNorm, instancenorm._InstanceNorm)):
        layer.num_features = n
    elif isinstance(layer, nn.GroupNorm):
        layer.num_groups = n if layer.num_groups == layer.num_channels else layer.num_groups
        layer.num_channels = n
    elif isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        layer.normalized_shape = (n,)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = n


def _shrink(layer: nn.Module, name: str, axis: int, keep: torch.Tensor) -> None:
    tensor = getattr(layer, name, None)
    if not isinstance(tensor, torch.Tensor):
        return
    kept = tensor.detach().index_select(axis, keep.to(tensor.device)).clone()
    setattr(layer, name, nn.Parameter(kept, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else kept)
