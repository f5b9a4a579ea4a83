"""Reads the constructor arguments of a torch.nn layer off the layer itself, so that it can be built again elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from .allowed import layers

if TYPE_CHECKING:
    from torch import nn

# An attribute, parameter, buffer or submodule of a layer by name; raises KeyError. A pickled layer that is only looked
# at, never brought to life, is read the same way.
Facts = Callable[[str], Any]

_MISSING = object()
# Arguments that say where a layer lives, or that only draw its first weights.
_SKIPPED = frozenset({"device", "dtype", "_weight", "_freeze", "init", "min_value", "max_value", "args", "kwargs"})
_RECURRENT = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size")


def arguments(layer: nn.Module) -> dict[str, Any]:
    """The keyword arguments with which `type(layer)` gives a layer like this one.

    Raises ValueError saying what stands in the way. The layer's class must be one of `allowed.layers()`."""
    import torch

    name = type(layer).__name__
    if "forward" in vars(layer):
        raise ValueError("its forward was replaced")
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise ValueError(
            "it carries hooks, which are code (weight_norm, spectral_norm or pruning: remove them first, "
            "with torch.nn.utils.remove_weight_norm, torch.nn.utils.prune.remove …)"
        )
    found = arguments_from(name, _facts(layer))
    with torch.device("meta"):
        try:
            twin = layers()[name](**found)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"its constructor refuses {found}: {error}") from error
    mine = {k: tuple(v.shape) for k, v in layer.state_dict().items()}
    its = {k: tuple(v.shape) for k, v in twin.state_dict().items()}
    if mine != its:
        odd = sorted(k for k in mine.keys() | its.keys() if mine.get(k) != its.get(k))
        raise ValueError(f"its tensors are not those of a plain {name}: {', '.join(odd[:4])}")
    if twin.extra_repr() != layer.extra_repr():
        raise ValueError(f"it says ({layer.extra_repr()}), but its arguments give ({twin.extra_repr()})")
    return found


def arguments_from(name: str, facts: Facts) -> dict[str, Any]:
    """The same from bare facts. Raises ValueError for an argument that cannot be read."""
    if name in ("LSTM", "GRU", "RNN"):
        found = {a: facts(a) for a in _RECURRENT if not (a == "proj_size" and name != "LSTM")}
        return found | ({"nonlinearity": facts("nonlinearity")} if name == "RNN" else {})
    if name == "MultiheadAttention":
        found = {
            a: facts(a) for a in ("embed_dim", "num_heads", "dropout", "kdim", "vdim", "add_zero_attn", "batch_first")
        }
        return found | {
            "bias": _get(facts, "in_proj_bias") is not None,
            "add_bias_kv": _get(facts, "bias_k") is not None,
        }
    if name in ("TransformerEncoderLayer", "TransformerDecoderLayer"):
        return _transformer_layer(facts)
    found = {}
    for parameter in _signature(name):
        if parameter.name in _SKIPPED:
            continue
        value = _get(facts, parameter.name)
        if parameter.name == "bias":
            value = bool(value) if isinstance(value, bool) else value is not None and value is not _MISSING
        elif name == "PReLU" and parameter.name == "num_parameters":
            value = facts("num_parameters")
        if value is _MISSING:
            if parameter.default is inspect.Parameter.empty:
                raise ValueError(f"its argument {parameter.name!r} cannot be read off it")
            continue
        found[parameter.name] = value
    return found


def _transformer_layer(facts: Facts) -> dict[str, Any]:
    attention, first = _facts(facts("self_attn")), _facts(facts("linear1"))
    activation = facts("activation")
    named = str(getattr(activation, "path", None) or getattr(activation, "__name__", "")).rsplit(".", 1)[-1]
    if named not in ("relu", "gelu"):
        raise ValueError(f"its activation is {named or activation!r}: only relu and gelu can be written down")
    return {
        "d_model": attention("embed_dim"),
        "nhead": attention("num_heads"),
        "dim_feedforward": first("out_features"),
        "dropout": _facts(facts("dropout"))("p"),
        "activation": named,
        "layer_norm_eps": _facts(facts("norm1"))("eps"),
        "batch_first": attention("batch_first"),
        "norm_first": facts("norm_first"),
        "bias": first("bias") is not None,
    }


def _facts(layer: Any) -> Facts:
    """Reads __dict__ and torch's own tables only: no property and no __getattr__ of a stranger's class runs."""

    def look(name: str) -> Any:
        own = vars(layer)
        for table in (own, own.get("_parameters") or {}, own.get("_buffers") or {}, own.get("_modules") or {}):
            if name in table:
                return table[name]
        raise KeyError(name)

    return look


facts_of = _facts


def _get(facts: Facts, name: str) -> Any:
    try:
        return facts(name)
    except KeyError:
        return _MISSING


@cache
def _signature(name: str) -> tuple[inspect.Parameter, ...]:
    return tuple(inspect.signature(layers()[name]).parameters.values())
