"""prune: zeros in the weights (torch.nn.utils.prune, made permanent), or channels that are really gone."""

from __future__ import annotations

import time
from typing import Any

from app.domain.specs import PruneSpec, Training
from app.errors import Problem, Unprocessable
from workers.context import Context
from workers.net import Net, load, parameters, prunable, sparsity
from workers.nn import forecast, pruning_figures, sensitivity
from workers.nn.cuts import cut_for, share_of
from workers.nn.data import Data
from workers.nn.draft import judged, torch_draft
from workers.nn.export import to_onnx
from workers.nn.finetune import worsened
from workers.nn.macs import macs, onnx_sparsity
from workers.nn.quality import paired
from workers.nn.saliency import taylor
from workers.nn.stepwise import Told, Walked, split, walk
from workers.nn.weights_pruning import holds_n_m
from workers.passes import Outcome

NO_SPEED = (
    "Zeros in the weights make no engine of this installation faster: its kernels multiply by them like by any number. "
    "For speed prune channels (method `channel`)."
)
ROWS_OF_ZEROS = "The rows are zeros and still there: ln_structured removes no channel."
SPARSE_CORES = (
    "Only GPUs with sparse tensor cores (NVIDIA, from Ampere on) gain speed from the pattern 2:4, in engines that "
    "TensorRT builds with SPARSE_WEIGHTS; everything else multiplies by these zeros like by any number."
)
NOT_2_4 = "No hardware known gains speed from the pattern {n}:{m}: sparse tensor cores take 2:4."


def run(spec: PruneSpec, ctx: Context) -> Outcome:
    """Raises Unprocessable for layers that do not exist, or that the method cannot prune, and what training raises."""
    ctx.progress(0, None, phase="loading")
    source, folder = ctx.source()
    net = load(folder, source)
    _check_layers(spec, net)
    data = ctx.dataset().fit_to(net.signature) if ctx.job.dataset or spec.wants_dataset() else None
    report = _head(spec, net)
    looked = _looked(spec, net, data, ctx) if spec.sensitivity else None
    cut = cut_for(spec, net, source, None if spec.dry_run else data, ctx)
    if spec.dry_run:
        return _dry(spec, net, data, ctx, report, looked, cut)
    before = judged(net, data, ctx) if data else None
    net.module.cpu()
    walked = walk(net, spec, source, data, ctx, cut, share_of(spec))
    after = judged(net, data, ctx) if data else None
    report |= walked.told | {"notes": [*walked.told["notes"], *_step_notes(spec, walked)]}
    if len(walked.steps) > 1:
        report["steps"] = walked.steps
    if fine := walked.summary([step["epochs"] for step in walked.steps]):
        report["finetune"] = fine
    if spec.method != "channel":
        _count(spec, net, report, ctx)
    if before is not None and after is not None:
        report["quality_before"], report["quality_after"] = before.value(), after.value()
        report["quality_change"] = paired(after, before)
    masked = True if spec.method != "channel" else None
    folder, draft = torch_draft(net, source, ctx, data, after, masked=masked)
    report["parameters"]["after"], report["macs"]["after"] = draft["parameters"], draft["macs"]
    _draw(report, walked.steps, looked)
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
        "amount": share_of(spec),
        "scope": spec.scope,
        "importance": "random" if spec.method == "random_unstructured" else spec.importance,
        "parameters": {"before": n, "after": n},
        "macs": {"before": m, "after": m},
        "notes": [],
    }


def _looked(spec: PruneSpec, net: Net, data: Data | None, ctx: Context) -> dict[str, Any] | None:
    """The sensitivity of each layer, where there are rows to measure it on."""
    if data is None or not len(data.val):
        return None
    saliency = None
    if spec.importance == "taylor" and not spec.dry_run:
        saliency, _ = taylor(net, data, spec.finetune or Training(), ctx, spec.seed)
    return sensitivity.sensitivity(net, spec, data, ctx, saliency)


def _step_notes(spec: PruneSpec, walked: Walked) -> list[str]:
    notes = []
    if spec.steps > 1 and spec.schedule == "one_shot":
        notes.append(f"one_shot takes all in one step: `steps` {spec.steps} plays no part.")
    elif spec.steps > 1 and walked.fits:
        epochs = [step["epochs"] for step in walked.steps]
        each = ", ".join(map(str, epochs))
        notes.append(f"{sum(epochs)} epochs of fine-tuning in all, split over {len(epochs)} steps: {each}.")
    if walked.fits and (line := worsened(walked.fits[-1], " after the last step" if len(walked.steps) > 1 else "")):
        notes.append(line)
    if walked.fits and (teacher := walked.fits[-1].teacher):
        last = walked.fits[-1]
        notes.append(
            f"The fine-tuning learnt from the data and, with a share of {last.alpha:g}, from the answers of {teacher}."
        )
    return notes


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
    _promise(spec, net, report)


def _promise(spec: PruneSpec, net: Net, report: dict[str, Any]) -> None:
    """What zeros are good for, said plainly."""
    if spec.method == "n_m":
        layers = prunable(net.module)
        held = [n for n in report["layers"] if n not in report["left_alone"] and holds_n_m(layers[n], spec.n, spec.m)]
        report["pattern"] = {"n": spec.n, "m": spec.m, "layers": held}
        report["notes"].append(SPARSE_CORES if (spec.n, spec.m) == (2, 4) else NOT_2_4.format(n=spec.n, m=spec.m))
    report["notes"].append(NO_SPEED)
    if spec.method == "ln_structured":
        report["notes"].append(ROWS_OF_ZEROS)


def _draw(report: dict[str, Any], steps: list[dict[str, Any]], looked: dict[str, Any] | None) -> None:
    report["figures"] = pruning_figures.layers(report) + (pruning_figures.steps(steps) if len(steps) > 1 else [])
    if looked is not None:
        report["sensitivity"] = looked
        report["figures"].append(sensitivity.figure(looked))
        report["notes"].append(looked["suggestion"])


def _dry(
    spec: PruneSpec,
    net: Net,
    data: Data | None,
    ctx: Context,
    report: dict[str, Any],
    looked: dict[str, Any] | None,
    cut: Any,
) -> Outcome:
    """The surgery on a copy that nobody keeps: exact sizes, no training."""
    began = time.monotonic()
    ctx.progress(0, None, phase="trying on a copy")
    told: Told = {}
    cut(net, share_of(spec), told)
    report |= told | {"dry_run": True}
    took = time.monotonic() - began
    after = forecast.size(net)
    report["parameters"]["after"], report["macs"]["after"] = after["parameters"], after["macs"]
    report["sparsity"] = sparsity(net.module)
    notes: list[str] = report["notes"]
    if spec.method != "channel":
        _promise(spec, net, report)
    _draw(report, [], looked)
    report["layers"] = _possible(report, net)
    if spec.sensitivity and looked is None:
        notes.append("Sensitivity is measured on validation rows: name a data set.")
    report["estimate_s"] = round(took + _training_s(spec, net, data, ctx, notes), 1)
    return Outcome(None, {}, report)


def _training_s(spec: PruneSpec, net: Net, data: Data | None, ctx: Context, notes: list[str]) -> float:
    if spec.finetune is None:
        return 0.0
    if data is None:
        notes.append("The estimate is without the fine-tuning: name a data set to have it counted.")
        return 0.0
    if spec.steps > 1:
        epochs = split(spec.finetune.epochs, 1 if spec.schedule == "one_shot" else spec.steps)
        notes.append(
            f"The estimate takes all {spec.finetune.epochs} epochs as of the final network; earlier steps are slower. "
            f"Epochs per step: {', '.join(map(str, epochs))}."
        )
    return forecast.training(net, data, spec.finetune, ctx)


def _possible(report: dict[str, Any], net: Net) -> dict[str, str]:
    """For every prunable layer what would be left of it, or why it is left alone."""
    channels, zeros, why = report.get("channels", {}), report.get("layers", {}), report["left_alone"]
    found = {}
    for name in prunable(net.module):
        if name in why:
            found[name] = f"left alone: {why[name]}"
        elif name in channels:
            found[name] = f"{channels[name]['after']} of {channels[name]['before']} channels stay"
        elif name in zeros:
            found[name] = f"{100 * zeros[name]['sparsity_after']:.1f} % of the weights are zero"
        else:
            found[name] = "not named in `layers`"
    return found
