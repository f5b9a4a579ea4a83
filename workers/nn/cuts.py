"""One step of a pruning: zeros in the weights, or channels taken out; what was done is told as plain data."""

from __future__ import annotations

from typing import Any

import torch
from enginesmith import graph as form
from torch import fx, nn

from app.domain.records import Version
from app.domain.specs import PruneSpec, Training
from app.errors import Unprocessable
from workers.context import Context
from workers.net import Net, layer_sparsity, prunable, sparsity
from workers.nn.channels import Thinned, output_layers, thin
from workers.nn.choice import groups, sizes
from workers.nn.data import Data
from workers.nn.following import follow
from workers.nn.graph import trace
from workers.nn.masks import inherited
from workers.nn.recalibrate import recalibrate
from workers.nn.saliency import taylor
from workers.nn.stepwise import Cut, Masks, Told
from workers.nn.weights_pruning import fits_n_m, zero

MANY = 20  # of names in a note


def cut_for(spec: PruneSpec, net: Net, source: Version, data: Data | None, ctx: Context) -> Cut:
    """What a step of this job does. net: the network as it is before the first. Raises Unprocessable for layers that
    the method cannot prune."""
    if spec.method == "channel":
        return _channels(spec, net, source, data, ctx)
    return _weights(spec, net, source, data, ctx)


def share_of(spec: PruneSpec) -> float:
    """The share that the job takes: of n_m it is the pattern that says so, not `amount`."""
    return (spec.m - spec.n) / spec.m if spec.method == "n_m" else spec.amount


def _importance(
    spec: PruneSpec, net: Net, data: Data | None, ctx: Context, told: Told
) -> dict[str, torch.Tensor] | None:
    if spec.importance != "taylor":
        return None
    if data is None:
        why = "A dry run computes" if ctx.job.dataset else "Without a data set there are"
        told["notes"].append(f"{why} no gradients: magnitude stands in for taylor here.")
        return None
    found, line = taylor(net, data, spec.finetune or Training(), ctx, spec.seed)
    told["notes"].append(line)
    return found


def _weights(spec: PruneSpec, net: Net, source: Version, data: Data | None, ctx: Context) -> Cut:
    names = [n for n in prunable(net.module) if spec.layers is None or n in spec.layers]
    notes = []
    if spec.method == "ln_structured" and spec.layers is None:
        for name in sorted(output_layers(net.module, net.example()) & set(names)):
            names.remove(name)
            notes.append(f"{name} makes the outputs and was left alone; name it in `layers` to prune it.")
    if spec.method == "n_m":
        _check_n_m(spec, net, names)
    was, total, before = layer_sparsity(net.module), sparsity(net.module), inherited(net, source)

    def cut(net: Net, amount: float, told: Told) -> Masks:
        told["notes"] = list(notes)
        saliency = _importance(spec, net, data, ctx, told)
        layers = {n: layer for n, layer in prunable(net.module).items() if n in names}
        found = zero(spec, layers, amount, saliency)
        now = layer_sparsity(net.module)
        told["layers"] = {n: {"sparsity_before": was[n], "sparsity_after": now[n]} for n in layers}
        told["sparsity_before"], told["left_alone"] = total, found.left_alone
        if found.left_alone:
            told["notes"].append(f"Left alone: {listed(found.left_alone)}.")
        if found.spared:
            what = "one row" if spec.method == "ln_structured" else "one weight"
            told["notes"].append(
                f"An amount of {amount:g} would leave nothing of {', '.join(found.spared[:MANY])}: {what} was kept."
            )
        if sparsity(net.module) == total:
            told["notes"].insert(0, _no_zeros(spec, amount, len(layers), len(found.left_alone)))
        return before | found.masks

    return cut


def _no_zeros(spec: PruneSpec, amount: float, layers: int, left_alone: int) -> str:
    if spec.method != "n_m":
        return f"Nothing went: {amount:g} of the weights is less than one per layer, or was zero already."
    if left_alone == layers:
        return f"Nothing went: no layer has an input size that is a multiple of {spec.m}. The weights are as they were."
    return f"Nothing went: of {spec.m} weights in a row {spec.m - spec.n} were zero already."


def _check_n_m(spec: PruneSpec, net: Net, names: list[str]) -> None:
    layers = prunable(net.module)
    unfit = {n: why for n in names if (why := fits_n_m(layers[n], spec.m))}
    if spec.layers is not None and unfit:
        raise Unprocessable(
            f"n_m cannot prune {listed(unfit)}",
            code="layer_not_prunable",
            hint=f"name layers whose input size is a multiple of {spec.m}, or none: then the others are left alone",
        )


def _channels(spec: PruneSpec, net: Net, source: Version, data: Data | None, ctx: Context) -> Cut:
    whole = group_sizes(net, spec.layers)
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.module.modules())

    def cut(net: Net, amount: float, told: Told) -> Masks:
        told["notes"] = []
        saliency = _importance(spec, net, data, ctx, told)
        how: dict[str, Any] = {"scope": spec.scope, "importance": spec.importance, "round_to": spec.round_to}
        how |= {"seed": spec.seed, "layers": spec.layers, "saliency": saliency, "whole": whole}
        found = _describable(thin(net.module, net.example(), amount, **how), net)
        net.module = found.module
        tell(found, told)
        told["notes"] += _channel_notes(spec, found, told)
        if found.removed and data is not None:
            layers = recalibrate(net.module, data.train, spec.seed, ctx.device)
            net.module.cpu()
            if layers:
                told["notes"].append(f"The statistics of {layers} batch-norm layers were taken anew on training rows.")
        elif found.removed and norms and not spec.dry_run:
            told["notes"].append(
                "Batch norm keeps the statistics of the whole network: a data set would let them be taken anew."
            )
        return inherited(net, source)

    return cut


def group_sizes(net: Net, layers: list[str] | None) -> dict[frozenset[str], int]:
    """How many channels can go together, by the layers that produce them; empty where the graph cannot be followed."""
    try:
        graph, _ = follow(net.module, net.example(), layers)
        channels = trace(graph, net.example()).channels()
    except Exception:  # torch.fx raises whatever a network's own forward raises when it is traced
        return {}
    return sizes(channels, groups(channels, layers))


def tell(found: Thinned, told: Told) -> None:
    """What one removal did, added to what those before it did."""
    channels = told.setdefault("channels", {n: {"before": b, "after": b} for n, b in found.before.items()})
    for name, after in found.after.items():
        channels.setdefault(name, {"before": found.before.get(name, after)})["after"] = after
    if found.heads:
        heads = told.setdefault("heads", {n: dict(h) for n, h in found.heads.items()})
        for name, counted in found.heads.items():
            heads.setdefault(name, dict(counted))["after"] = counted["after"]
    told["left_alone"] = found.left_alone
    told["check"] = found.check or told.get("check")


def _channel_notes(spec: PruneSpec, found: Thinned, told: Told) -> list[str]:
    notes = []
    channels: dict[str, dict[str, int]] = told["channels"]
    removed = any(c["after"] < c["before"] for c in channels.values())
    if found.refused:
        notes.append(f"The network was left as it was: {found.refused}.")
    elif not removed:
        notes.append(_nothing(spec, found))
    elif found.left_alone:
        notes.append(f"Left alone: {listed(found.left_alone)}.")
    odd = [n for n, c in channels.items() if c["after"] % spec.round_to and not c["before"] % spec.round_to]
    if odd:
        notes.append(f"No multiple of {spec.round_to}, because groups couple layers unevenly: {', '.join(odd[:MANY])}.")
    lone = [n for n, c in channels.items() if c["after"] == 1 < c["before"]]
    if lone:
        notes.append(f"A single channel is left of {', '.join(lone[:MANY])}: the last one is never taken.")
    return notes


def _nothing(spec: PruneSpec, found: Thinned) -> str:
    if found.left_alone and len(found.left_alone) == len(found.before if spec.layers is None else spec.layers):
        return f"No channel can go safely, so the network was left as it was: {listed(found.left_alone)}."
    return (
        f"Nothing went: {spec.amount:g} of the channels, kept in multiples of {spec.round_to}, is less than one in "
        "every layer. A larger `amount` removes some."
    )


def _describable(found: Thinned, net: Net) -> Thinned:
    """A library's network with channels gone is stored as a graph; where that cannot be, it is left as it was."""
    if isinstance(net.module, fx.GraphModule) or not isinstance(found.module, fx.GraphModule):
        return found
    try:
        form.describe(found.module)
    except Exception as error:  # the client's own error, which the API's vocabulary does not hold
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return Thinned(
            net.module, found.before, found.before, refused=f"without its library it cannot be stored: {reason}"
        )
    return found


def listed(reasons: dict[str, str]) -> str:
    """Layers with the reason of each, the first twenty of them."""
    more = f" and {len(reasons) - MANY} more" if len(reasons) > MANY else ""
    return "; ".join(f"{n} ({why})" for n, why in list(reasons.items())[:MANY]) + more
