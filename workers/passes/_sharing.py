"""What each method of share does to a network, layer by layer: before anything is fitted, trained or measured."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules import conv

from app.domain.specs import ShareSpec
from app.errors import Unprocessable
from workers.net import Net, prunable
from workers.nn import factors, grouping, palettes
from workers.nn.palettes import Palette
from workers.nn.refit import Pair, stretch
from workers.nn.sites import Site, exchange, graph_of, must_know, sites, weight_of

Row = dict[str, Any]
QUICK = 500_000  # kernels: finding permutations for more takes longer than a dry run should


@dataclass
class Made:
    """module: the network with its parameters shared. layers: what was done, layer by layer. before: the network as it
    was, with its channels in the same order. plain: grouped without permutation, and the network as it was for that.
    pairs: the layers that can be fitted to what `before` gives. total: of the layers together."""

    module: nn.Module
    layers: dict[str, Row]
    left_alone: dict[str, str]
    before: nn.Module
    pairs: list[Pair] = field(default_factory=list)
    plain: tuple[fx.GraphModule, fx.GraphModule] | None = None
    palettes: dict[str, Palette] = field(default_factory=dict)
    total: Row = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def grouped_conv(spec: ShareSpec, net: Net, dry: bool, masked: bool) -> Made:
    """Raises Unprocessable: `bad_groups` where a layer that is named, or every layer, cannot have these groups."""
    graph, found, left = _open(spec, net, conv._ConvNd, "convolution")
    for name, site in list(found.items()):
        layer: Any = site.layer
        channels = f"{layer.in_channels} → {layer.out_channels} channels"
        if layer.groups > 1:
            why: str | None = f"it has {layer.groups} groups already ({channels})"
        elif layer.in_channels % spec.groups or layer.out_channels % spec.groups:
            why = f"{spec.groups} groups do not divide its {channels}"
        else:
            continue
        if spec.layers is not None:
            raise Unprocessable(
                f"the layer {name!r} cannot have {spec.groups} groups: {why}",
                code="bad_groups",
                hint="the groups must divide what goes in and what comes out of a dense convolution",
            )
        left[name] = str(why)
        del found[name]
    _must_be_some(spec, found, left, dry)
    names = list(found)
    folded = grouping.Folded(copy.deepcopy(graph))
    kernels = sum(weight_of(found[n].layer).shape[:2].numel() for n in names)
    left_in_order = dry and kernels > QUICK
    tried = bool(names) and spec.permute and not left_in_order
    if tried:
        starts = 1 if dry else grouping.STARTS
        folded = grouping.fold(graph, net.example(), names, spec.groups, spec.seed, starts)
    made = Made(
        copy.deepcopy(folded.module),
        {},
        left,
        folded.module,
        [Pair(n, n, found[n].norm) for n in names if found[n].calls == 1],
    )
    plain = copy.deepcopy(graph)
    for name in names:
        before: Any = graph.get_submodule(name)
        share = grouping.group(made.module.get_submodule(name), spec.groups)
        row: Row = {"groups": spec.groups, "in_channels": before.in_channels, "out_channels": before.out_channels}
        row |= {"kept_norm": share, "kept_norm_unpermuted": grouping.group(plain.get_submodule(name), spec.groups)}
        if tried:
            row["permuted"] = [side for side in ("in", "out") if side in folded.moved.get(name, [])]
            if len(row["permuted"]) < 2 and (why := folded.why_not or folded.pinned.get(name)):
                row["pinned"] = why
        made.layers[name] = row
    energy = {n: float(weight_of(found[n].layer).detach().double().square().sum()) for n in names}
    whole = sum(energy.values()) or 1.0
    for key in ("kept_norm", "kept_norm_unpermuted"):
        made.total[key] = float(np.sqrt(sum(energy[n] * made.layers[n][key] ** 2 for n in names) / whole))
    if spec.permute and left_in_order:
        made.notes.append(
            "The dry run of so large a network leaves its channels in their order: more is kept in truth."
        )
    if tried:
        made.plain = plain, graph
        if folded.why_not:
            made.notes.append(f"The channels stay in their order: {folded.why_not}.")
        else:
            made.total["check"] = f"before weights went: equal to the network as it was within {folded.check:.1e}"
    return made


def rescale(made: Made) -> None:
    """Without data: every output channel of a grouped convolution gets back the norm that its weights had, the size of
    its outputs were the inputs independent; by no more than weights without any structure would need."""
    for module, before in ((made.module, made.before), *([made.plain] if made.plain else [])):
        for name, row in made.layers.items():
            old, new = before.get_submodule(name), module.get_submodule(name)
            axis = int(bool(getattr(old, "transposed", False)))
            was = weight_of(old).detach().transpose(0, axis).flatten(1).norm(dim=1)
            now = weight_of(new).detach()
            if axis:
                now = now.reshape(row["groups"], -1, *now.shape[1:]).transpose(1, 2).flatten(0, 1)
            ratio = was / now.flatten(1).norm(dim=1).clamp_min(1e-12)
            stretch(new, ratio.clamp(1.0, row["groups"] ** 0.5))


def depthwise_separable(spec: ShareSpec, net: Net, dry: bool, masked: bool) -> Made:
    """Convolutions of kernels larger than one place."""
    graph, found, left = _open(spec, net, conv._ConvNd, "convolution")
    plans: dict[str, factors.Plan] = {}
    for name, site in found.items():
        layer: Any = site.layer
        if layer.transposed:
            left[name] = "it is a transposed convolution"
        elif layer.groups > 1:
            left[name] = f"it has {layer.groups} groups already"
        elif max(layer.kernel_size) == 1:
            left[name] = "its kernel has one place: it is pointwise already"
        elif not (plan := factors.separable_cost(site)).pays:
            left[name] = _costs(plan)
        else:
            plans[name] = plan
    return _exchanged(spec, graph, found, left, plans, lambda layer, plan: factors.separable(layer), "pointwise", dry)


def low_rank(spec: ShareSpec, net: Net, dry: bool, masked: bool) -> Made:
    """Linear layers and convolutions, where the factors cost less than the layer."""
    graph, found, left = _open(spec, net, (conv._ConvNd, nn.Linear), "convolution or linear layer")
    plans: dict[str, factors.Plan] = {}
    for name, site in found.items():
        if getattr(site.layer, "groups", 1) > 1:
            left[name] = f"it has {site.layer.groups} groups"
        elif not (plan := factors.plan(site, spec.ranks, spec.energy)).pays:
            left[name] = f"of rank {plan.rank[0]}/{plan.rank[1]} {_costs(plan)}"
        else:
            plans[name] = plan
    return _exchanged(
        spec, graph, found, left, plans, lambda layer, plan: factors.low_rank(layer, plan.rank, empty=dry), "up", dry
    )


def cluster(spec: ShareSpec, net: Net, dry: bool, masked: bool) -> Made:
    """The weights of every layer become the values of its palette. Works on any network."""
    layers = prunable(net.module)
    must_know(spec.layers, layers, "convolution or linear layer")
    before = copy.deepcopy(net.module)
    made = Made(net.module, {}, {}, before)
    seen: set[int] = set()
    for name, layer in layers.items():
        if spec.layers is not None and name not in spec.layers:
            continue
        weight = weight_of(layer)
        n, values = weight.numel(), min(spec.clusters, weight.numel())
        if id(weight) in seen:
            made.left_alone[name] = "its weights are those of another layer"
            continue
        seen.add(id(weight))
        if palettes.packed_bytes(n, values) >= 4 * n:
            made.left_alone[name] = f"its {n} weights are no larger than a palette of {values} and their indices"
            continue
        size = {"before": n * weight.element_size(), "after": palettes.packed_bytes(n, values)}
        row: Row = {"weights": n, "values": values, "bits": palettes.bits(values), "bytes": size}
        made.layers[name] = row
        if dry:
            continue
        found = made.palettes[name] = palettes.palette(weight, spec.clusters, keep_zeros=masked)
        new = found.weights().to(weight.device)
        gap = (new - weight.detach()).double().norm() / weight.detach().double().norm().clamp_min(1e-300)
        row |= {"values": len(found.values), "relative_error": float(gap)}
        with torch.no_grad():
            weight.copy_(new)
    _must_be_some(spec, made.layers, made.left_alone, dry)
    return made


MAKE: dict[str, Callable[[ShareSpec, Net, bool, bool], Made]] = {
    "grouped_conv": grouped_conv,
    "depthwise_separable": depthwise_separable,
    "low_rank": low_rank,
    "cluster": cluster,
}


def _open(spec: ShareSpec, net: Net, kind: Any, what: str) -> tuple[fx.GraphModule, dict[str, Site], dict[str, str]]:
    """The graph, the layers that are asked for, and why others cannot be touched. Raises Unprocessable."""
    graph = graph_of(net)
    found, reasons = sites(graph, net.example())
    found = {n: s for n, s in found.items() if isinstance(s.layer, kind)}
    left = {n: why for n, why in reasons.items() if isinstance(graph.get_submodule(n), kind)}
    must_know(spec.layers, [*found, *left], what)
    if spec.layers is not None:
        if blocked := next((n for n in spec.layers if n in left), None):
            raise Unprocessable(
                f"the layer {blocked!r} cannot be exchanged: {left[blocked]}",
                code="not_shareable",
                hint="leave it out of `layers`",
            )
        found, left = {n: found[n] for n in found if n in spec.layers}, {}
    return graph, found, left


def _exchanged(
    spec: ShareSpec,
    graph: fx.GraphModule,
    found: dict[str, Site],
    left: dict[str, str],
    plans: dict[str, factors.Plan],
    factor: Callable[[nn.Module, factors.Plan], tuple[factors.Parts, float | None]],
    last: str,
    dry: bool,
) -> Made:
    _must_be_some(spec, plans, left, dry)
    module = copy.deepcopy(graph)
    made = Made(module, {}, left, graph)
    energy = kept = 0.0
    for name, plan in plans.items():
        parts, share = factor(found[name].layer, plan)
        exchange(module, name, parts)
        row: Row = {"rank": list(plan.rank), "of": list(plan.of)} if spec.method == "low_rank" else {}
        row |= {"parameters": _change(plan.weights), "macs": _change(plan.macs)}
        if share is not None:
            row["kept_norm"] = share
        if plan.noise:
            row["note"] = "VBMF finds nothing but noise in its weights: rank 1 is what is left of it"
        made.layers[name] = row
        if found[name].calls == 1:
            made.pairs.append(Pair(f"{name}.{last}", name, found[name].norm))
        size = float(weight_of(found[name].layer).detach().double().square().sum())
        energy, kept = energy + size, kept + size * (share or 0.0) ** 2
    module.graph.lint()
    module.recompile()
    if all("kept_norm" in row for row in made.layers.values()):
        made.total["kept_norm"] = float(np.sqrt(kept / (energy or 1.0)))
    return made


def _change(pair: tuple[int, int]) -> Row:
    return {"before": pair[0], "after": pair[1]}


def _costs(plan: factors.Plan) -> str:
    return (
        f"it would cost {plan.macs[1]:,} multiply-accumulates and {plan.weights[1]:,} weights, "
        f"where it costs {plan.macs[0]:,} and {plan.weights[0]:,}"
    )


def _must_be_some(spec: ShareSpec, found: dict[str, Any], left: dict[str, str], dry: bool) -> None:
    """A dry run where nothing can be done lists why, layer by layer; anything else fails with the same."""
    if found or dry:
        return
    listed = "; ".join(f"{name}: {why}" for name, why in list(left.items())[:8])
    more = f"; and {len(left) - 8} more" if len(left) > 8 else ""
    hints = {
        "grouped_conv": "choose `groups` that divide the channels of some dense convolution",
        "low_rank": "a lower `energy` gives lower ranks",
        "cluster": "fewer `clusters` make smaller palettes",
        "depthwise_separable": "it is for dense convolutions with kernels larger than 1",
    }
    raise Unprocessable(
        f"{spec.method} can be done to no layer of this model{': ' + listed + more if listed else ''}",
        code="bad_groups" if any("do not divide" in why for why in left.values()) else "nothing_to_share",
        hint=hints[spec.method],
    )
