"""Quantization-aware training: a copy of a network that rounds as int8 will, to be fine-tuned, and its weights back.

Fake quantization with straight-through gradients (Jacob et al. 2018): weights symmetric with a scale per channel that
follows them, activations with one range per tensor, taken from calibration rows. NNCF, which places the scales of the
file afterwards, would compile C++ on the worker for its own.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear)
_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_INPUT = "input_rounding"


class Rounding(nn.Module):
    """Rounds activations to int8. signed: never unsigned, as TensorRT wants it. The range is taken in while `looks`."""

    def __init__(self, signed: bool) -> None:
        super().__init__()
        self.signed, self.looks = signed, True
        self.low = self.high = 0.0

    def forward(self, x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return x
        if self.looks:
            self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
            return x
        reach = max(-self.low, self.high)
        if reach <= 0:
            return x
        least, most = (0, 255) if self.low >= 0 and not self.signed else (-128, 127)
        rounded = torch.fake_quantize_per_tensor_affine(x.float(), reach / most, 0, least, most)
        return rounded.to(x.dtype)


class RoundedWeight(nn.Module):
    """Rounds a weight to -127…127 with a scale per output channel."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        others = [a for a in range(weight.dim()) if a != self.axis]
        scale = (weight.detach().float().abs().amax(others) / 127).clamp(min=1e-12)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, self.axis, -127, 127)
        return rounded.to(weight.dtype)


def aware(module: nn.Module, rows: Iterable[torch.Tensor], *, signed: bool) -> nn.Module:
    """A copy that rounds the weights and inputs of convolutions and linear layers, and both sides of additions.

    rows: batches of inputs from which the ranges are taken.
    """
    rounding = copy.deepcopy(module)
    if isinstance(rounding, fx.GraphModule):
        _round_additions(rounding, signed)
    for layer in list(rounding.modules()):
        if isinstance(layer, LAYERS):
            axis = int(bool(getattr(layer, "transposed", False)))
            parametrize.register_parametrization(layer, "weight", RoundedWeight(axis))
            layer.add_module(_INPUT, Rounding(signed))
            layer.register_forward_pre_hook(_round_input)
    rounding.eval()
    with torch.no_grad():
        for x in rows:
            rounding(x)
    for part in rounding.modules():
        if isinstance(part, Rounding):
            part.looks = False
    return rounding


def give_back(trained: nn.Module, module: nn.Module) -> None:
    """Copies what was learnt, batch norm's statistics too, into the network that `aware` was given."""
    state = {name: value.detach().cpu() for name, value in _plain(trained.state_dict()).items()}
    with torch.no_grad():
        for name, value in module.state_dict(keep_vars=False).items():
            value.copy_(state[name])


def masks(found: Mapping[str, torch.Tensor], rounding: nn.Module) -> dict[str, torch.Tensor]:
    """Masks of pruned weights under the names that the weights have in the copy."""
    known = dict(rounding.named_parameters(remove_duplicate=False))
    inside = {name: name.removesuffix("weight") + "parametrizations.weight.original" for name in found}
    return {inside[n] if inside[n] in known else n: mask for n, mask in found.items()}


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("parametrizations.weight.original", "weight"): value for name, value in state.items()}


def _round_input(layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return (getattr(layer, _INPUT)(given[0]), *given[1:]) if given else given


def _round_additions(module: fx.GraphModule, signed: bool) -> None:
    """The sums of residual networks are int8 in the engine, too."""
    count = 0
    for node in list(module.graph.nodes):
        sides = [a for a in node.args[:2] if isinstance(a, fx.Node)]
        if node.op not in ("call_function", "call_method") or node.target not in _ADDS or len(sides) < 2:
            continue
        for place, side in enumerate(sides):
            name = f"sum_rounding_{count}"
            module.add_submodule(name, Rounding(signed))
            with module.graph.inserting_before(node):
                rounded = module.graph.call_module(name, (side,))
            node.update_arg(place, rounded)
            count += 1
    module.recompile()
