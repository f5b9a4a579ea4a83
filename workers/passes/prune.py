"""prune: zeros in the weights (torch.nn.utils.prune, made permanent), or channels that are really gone."""

from __future__ import annotations

from typing import Any

import torch
from enginesmith import graph as form
from torch import fx, nn
from torch.nn.utils import prune

from app.domain.records import Version
from app.domain.specs import PruneSpec
from app.errors import Problem, Unprocessable
from workers.context import Context
from workers.net import Net, layer_sparsity, load, parameters, prunable, sparsity
from workers.nn.channels import Thinned, output_layers, thin
from workers.nn.data import Data
from workers.nn.draft import judged, torch_draft
from workers.nn.export import to_onnx
from workers.nn.fit import Fitted, fit
from workers.nn.macs import macs, onnx_sparsity
from workers.nn.masks import inherited
from workers.nn.quality import paired
from workers.nn.recalibrate import recalibrate
from workers.passes import Outcome

NO_SPEED = (
    "Zeros in the weights make no engine of this installation faster: its kernels multiply by them like by any number. "
    "For speed prune channels (method `channel`)."
)
ROWS_OF_ZEROS = "The rows are zeros and still there: ln_structured removes no channel."


def run(spec: PruneSpec, ctx: Context) -> Outcome:
    """Raises Unprocessable for layers that do not exist."""
    ctx.progress(0, None, phase="loading")
    source, folder = ctx.source()
    net = load(folder, source)
    _check_layers(spec, net)
    data = ctx.dataset().fit_to(net.signature) if ctx.job.dataset else None
    before = judged(net, data, ctx) if data else None
    net.module.cpu()
    ctx.progress(0, None, phase="pruning")
    if spec.method == "channel":
        report, masks = _channels(spec, net, source, data, ctx)
    else:
        report, masks = _weights(spec, net, source)
    fitted: Fitted | None = None
    if spec.finetune is not None and data is not None:
        fitted = fit(net.module, data, spec.finetune, ctx, masks=masks, phase="fine-tuning")
        report["finetune"] = fitted.summary()
    after = judged(net, data, ctx) if data else None
    if spec.method != "channel":
        _count(spec, net, report, ctx)
    if before is not None and after is not None:
        report["quality_before"], report["quality_after"] = before.value(), after.value()
        report["quality_change"] = paired(after, before)
    masked = True if spec.method != "channel" else None
    folder, draft = torch_draft(net, source, ctx, data, after, masked=masked)
    report["parameters"]["after"], report["macs"]["after"] = draft["parameters"], draft["macs"]
    return Outcome(folder, draft | {"notes": tuple(report["notes"])}, report)


def _check_layers(spec: PruneSpec, net: Net) -> None:
    known = list(prunable(net.module))
    missing = [name for name in spec.layers or () if name not in known]
    if missing:
        some = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
        raise Unprocessable(
            f"the model has no prunable layer {', '.join(map(repr, missing[:5]))}; it has {some or 'none at all'}",
            code="unknown_layer",
            hint="name layers as they are in the architecture: convolutions and linear layers can be pruned",
        )
    if not known:
        raise Unprocessable("the model has no convolution or linear layer to prune", code="nothing_to_prune")


def _head(spec: PruneSpec, net: Net) -> dict[str, Any]:
    n, m = parameters(net.module), macs(net.module, net.example(batch=1))
    return {
        "method": spec.method,
        "amount": spec.amount,
        "scope": spec.scope,
        "parameters": {"before": n, "after": n},
        "macs": {"before": m, "after": m},
        "notes": [],
    }


def _weights(spec: PruneSpec, net: Net, source: Version) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    report = _head(spec, net)
    layers = {n: layer for n, layer in prunable(net.module).items() if spec.layers is None or n in spec.layers}
    if spec.method == "ln_structured" and spec.layers is None:
        for name in output_layers(net.module, net.example()):
            if layers.pop(name, None) is not None:
                report["notes"].append(f"{name} makes the outputs and was left alone; name it in `layers` to prune it.")
    was, total = layer_sparsity(net.module), sparsity(net.module)
    masks = inherited(net, source)
    torch.manual_seed(spec.seed)
    _PRUNE[spec.method](spec, list(layers.values()))
    for name, layer in layers.items():
        if prune.is_pruned(layer):
            prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        masks[f"{name}.weight"] = weight.detach() != 0
    now = layer_sparsity(net.module)
    report["layers"] = {n: {"sparsity_before": was[n], "sparsity_after": now[n]} for n in layers}
    report["sparsity_before"] = total
    if sparsity(net.module) == total:
        report["notes"].append(
            f"Nothing went: {spec.amount:g} of the weights is less than one per layer, or was zero already."
        )
    return report, masks


def _unstructured(method: Any) -> Any:
    def apply(spec: PruneSpec, layers: list[nn.Module]) -> None:
        if spec.scope == "global":
            prune.global_unstructured([(m, "weight") for m in layers], pruning_method=method, amount=spec.amount)
        else:
            for layer in layers:
                method.apply(layer, "weight", spec.amount)

    return apply


def _ln_structured(spec: PruneSpec, layers: list[nn.Module]) -> None:
    for layer in layers:
        axis = int(bool(getattr(layer, "transposed", False)))
        prune.ln_structured(layer, "weight", spec.amount, spec.norm, axis)  # type: ignore[no-untyped-call]


_PRUNE = {
    "l1_unstructured": _unstructured(prune.L1Unstructured),
    "random_unstructured": _unstructured(prune.RandomUnstructured),
    "ln_structured": _ln_structured,
}


def _count(spec: PruneSpec, net: Net, report: dict[str, Any], ctx: Context) -> None:
    """The sparsity as it is in the ONNX file that engines are built from."""
    ctx.progress(0, None, phase="counting zeros in the exported ONNX")
    report["sparsity"], report["counted_in"] = sparsity(net.module), "weights"
    path = ctx.scratch / "counted.onnx"
    try:
        to_onnx(net.module, net.signature, net.example(), path)
    except Problem as problem:
        report["notes"].append(f"Counted in the weights, because an ONNX file could not be made: {problem.detail}")
    else:
        report["onnx"] = onnx_sparsity(path)
        report["sparsity"], report["counted_in"] = report["onnx"]["sparsity"], "onnx"
        path.unlink()
    report["notes"].append(NO_SPEED)
    if spec.method == "ln_structured":
        report["notes"].append(ROWS_OF_ZEROS)


def _channels(
    spec: PruneSpec, net: Net, source: Version, data: Data | None, ctx: Context
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    report = _head(spec, net)
    found = thin(
        net.module,
        net.example(),
        spec.amount,
        layers=spec.layers,
        scope=spec.scope,
        importance=spec.importance,
        round_to=spec.round_to,
        seed=spec.seed,
    )
    found = _describable(found, net)
    net.module = found.module
    notes: list[str] = report["notes"]
    report["channels"] = {n: {"before": b, "after": found.after[n]} for n, b in found.before.items()}
    report["left_alone"], report["check"] = found.left_alone, found.check
    if found.refused:
        notes.append(f"The network was left as it was: {found.refused}.")
    elif not found.removed:
        notes.append(_nothing(spec, found))
    elif found.left_alone:
        notes.append(f"Left alone: {'; '.join(f'{n} ({why})' for n, why in list(found.left_alone.items())[:20])}.")
    odd = [n for n, left in found.after.items() if left % spec.round_to and not found.before[n] % spec.round_to]
    if odd:
        notes.append(f"No multiple of {spec.round_to}, because groups couple layers unevenly: {', '.join(odd[:20])}.")
    if found.removed and data is not None:
        layers = recalibrate(net.module, data.train, spec.seed, ctx.device)
        if layers:
            notes.append(f"The statistics of {layers} batch-norm layers were taken anew on training rows.")
    elif found.removed and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.module.modules()):
        notes.append("Batch norm keeps the statistics of the whole network: a data set would let them be taken anew.")
    return report, inherited(net, source)


def _nothing(spec: PruneSpec, found: Thinned) -> str:
    if found.left_alone and len(found.left_alone) == len(found.before if spec.layers is None else spec.layers):
        why = "; ".join(f"{n} ({why})" for n, why in list(found.left_alone.items())[:20])
        return f"No channel can go safely, so the network was left as it was: {why}."
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
