"""share: convolutions in groups, depthwise-separable or low-rank forms of layers, palettes of weights."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from app.domain.records import Version
from app.domain.specs import ShareSpec
from workers.context import Context
from workers.net import WEIGHTS, Net, load, parameters, prunable
from workers.nn import forecast, palettes
from workers.nn.data import Data, Rows
from workers.nn.draft import judged, torch_draft
from workers.nn.finetune import finetune, worsened
from workers.nn.fit import Fitted
from workers.nn.interleaved import interleaved
from workers.nn.macs import macs
from workers.nn.masks import inherited
from workers.nn.predict import eager, sensible_batch
from workers.nn.quality import answers, paired
from workers.nn.recalibrate import MAX_ROWS, recalibrate
from workers.nn.refit import refit, rows_for
from workers.nn.sites import weight_of
from workers.passes import Outcome
from workers.passes._sharing import MAKE, Made, rescale

SIZE_NOT_SPEED = (
    "Palettes are size, not speed: the runtimes of this installation multiply by 32-bit weights, and an engine built "
    "from this version is as large and as fast as one of the version before."
)
NOT_YET_SPEED = (
    "Fewer multiply-accumulates are not speed: kernels for small groups and thin layers reach less of a processor's "
    "peak than those of dense layers. Convert it, and see what the engine measures."
)
ROUNDS = 5
PACKED = "packed.npz"  # beside the dense weights, which are what is loaded


def run(spec: ShareSpec, ctx: Context) -> Outcome:
    """Raises Unprocessable: `unknown_layer`, `bad_groups`, `not_shareable`, `not_a_graph`, `nothing_to_share`."""
    ctx.progress(0, None, phase="loading")
    source, folder = ctx.source()
    net = load(folder, source)
    data = ctx.dataset().fit_to(net.signature) if ctx.job.dataset else None
    masked = bool(source.details.get("masked"))
    report = _head(spec, net)
    if spec.dry_run:
        return _dry_run(spec, net, data, masked, report, ctx)
    before = judged(net, data, ctx) if data else None
    looked = _look(net.module, data.val, ctx) if data else None
    net.module.cpu()

    ctx.progress(0, None, phase="sharing")
    made = MAKE[spec.method](spec, net, False, masked)
    net.module = made.module
    report |= {"layers": made.layers, "left_alone": made.left_alone} | ({"total": made.total} if made.total else {})
    notes: list[str] = report["notes"]
    notes += [_changed(made), *made.notes]
    if data is not None:
        report["validation"] = {"before": looked, "shared": _settled(spec, made, made.module, data, masked, ctx)}
        if made.plain and ctx.times:
            alone, whole = made.plain
            report["validation"]["shared_unpermuted"] = _settled(spec, made, alone, data, masked, ctx, whole)
    elif spec.method == "grouped_conv":
        rescale(made)
        notes.append("Without a data set the kept weights were only scaled, to the norm that every channel's had.")

    if spec.finetune is not None and data is not None:
        fitted = _finetuned(spec, net, made, source, data, ctx)
        report["finetune"] = fitted.summary()
        report["validation"]["finetuned"] = _look(net.module, data.val, ctx)
        if line := worsened(fitted):
            notes.append(line)
    if made.palettes:
        _pack(made, net, report, folder / WEIGHTS, ctx)
    after = judged(net, data, ctx) if data else None
    if before is not None and after is not None:
        report["quality_before"], report["quality_after"] = before.value(), after.value()
        report["quality_change"] = paired(after, before)
    if ctx.times and spec.method != "cluster":
        report["eager_speed"] = _speed(made, net, ctx)
    shared = {"method": spec.method, "layers": sorted(made.layers)} | report.get("packed", {})
    folder, draft = torch_draft(net, source, ctx, data, after, shared=shared)
    if made.palettes:
        (ctx.scratch / PACKED).rename(folder / PACKED)
    report["parameters"]["after"], report["macs"]["after"] = draft["parameters"], draft["macs"]
    _say(spec, made, report)
    return Outcome(folder, draft | {"notes": tuple(notes)}, report)


def _head(spec: ShareSpec, net: Net) -> dict[str, Any]:
    n, m = parameters(net.module), macs(net.module, net.example(batch=1))
    return {
        "method": spec.method,
        "parameters": {"before": n, "after": n},
        "macs": {"before": m, "after": m},
        "notes": [],
    }


def _dry_run(
    spec: ShareSpec, net: Net, data: Data | None, masked: bool, report: dict[str, Any], ctx: Context
) -> Outcome:
    ctx.progress(0, None, phase="looking")
    began = time.perf_counter()
    made = MAKE[spec.method](spec, net, True, masked)
    changed = Net(made.module, net.architecture, net.signature)
    size = forecast.size(changed)
    report["parameters"]["after"], report["macs"]["after"] = size["parameters"], size["macs"]
    left = {name: {"left_alone": why} for name, why in made.left_alone.items()}
    estimate = 3 * (time.perf_counter() - began)
    if data is not None:
        estimate += _evaluating(made, changed, data, ctx)
        if spec.finetune is not None:
            estimate += forecast.training(changed, data, spec.finetune, ctx)
    report |= {"dry_run": True, "layers": made.layers | left, "estimate_s": round(estimate, 2)}
    report["notes"] += [_changed(made), *made.notes] if made.layers else made.notes
    if not made.layers:
        report["notes"].append(f"{spec.method} can be done to no layer of this model: the job itself would fail.")
    if made.palettes or spec.method == "cluster":
        report["notes"].append(SIZE_NOT_SPEED)
    return Outcome(None, {}, report)


def _changed(made: Made) -> str:
    """First of all, how much of the network this is about."""
    every = prunable(made.before)
    whole = sum({id(weight_of(layer)): weight_of(layer).numel() for layer in every.values()}.values())
    part = sum(weight_of(every[n]).numel() for n in made.layers)
    return (
        f"{len(made.layers)} of {len(every)} convolution and linear layers changed; "
        f"{100 * part / max(1, whole):.1f} % of their weights were in those."
    )


def _evaluating(made: Made, net: Net, data: Data, ctx: Context) -> float:
    """Seconds for all that runs the network without training it."""
    some = data.train.sample(32, 0)
    began = time.perf_counter()
    for module in (made.before, net.module):
        predict = eager(module, ctx.device)
        for x, _ in some.batches(32):
            predict(x)
    row = (time.perf_counter() - began) / (2 * len(some))
    net.module.cpu()
    made.before.cpu()
    versions = 2 if made.plain else 1
    fitted = len(made.pairs) * len(rows_for(data.train, macs(made.before, net.example(batch=1)), 0))
    rows = 2 * len(data.split(ctx.split)) + 3 * len(data.val) + versions * (fitted + min(MAX_ROWS, len(data.train)))
    return row * rows


def _settled(
    spec: ShareSpec,
    made: Made,
    module: nn.Module,
    data: Data,
    masked: bool,
    ctx: Context,
    before: nn.Module | None = None,
) -> float | None:
    """Fits what is left of the weights and takes the statistics of batch norm anew; the validation figure then. Of the
    network itself also what the fit gained, layer by layer."""
    if made.pairs:
        ctx.progress(0, len(made.pairs), "layers", "fitting what is left")
        old = before if before is not None else made.before
        rows = rows_for(data.train, macs(old.cpu(), _one_row(data)), spec.seed)
        fitted = refit(
            module, old, made.pairs, rows, spec.solve, ctx.device, keep_zeros=masked, seed=spec.seed,
            tell=lambda done: ctx.progress(done, len(made.pairs), "layers", "fitting what is left"),
        )  # fmt: skip
        if module is made.module:
            for pair in made.pairs:
                made.layers[pair.old]["fit"] = fitted[pair.new]
    layers = recalibrate(module, data.train, spec.seed, ctx.device)
    if layers and module is made.module:
        made.notes.append(f"The statistics of {layers} batch-norm layers were taken anew on training rows.")
    found = _look(module, data.val, ctx)
    module.cpu()
    return found


def _one_row(data: Data) -> tuple[torch.Tensor, ...]:
    return (data.train.take(torch.arange(1))[0],)


def _look(module: nn.Module, rows: Rows, ctx: Context) -> float | None:
    """The figure on a split; None where it has no rows."""
    return answers(eager(module, ctx.device), rows, sensible_batch(rows.x.shape[1:])).value() if len(rows) else None


def _finetuned(spec: ShareSpec, net: Net, made: Made, source: Version, data: Data, ctx: Context) -> Fitted:
    assert spec.finetune is not None
    net.module.cpu()
    with palettes.trained_as(net.module, made.palettes) if made.palettes else nullcontext():
        return finetune(net, source, None, data, spec.finetune, ctx, masks=inherited(net, source))


def _pack(made: Made, net: Net, report: dict[str, Any], dense: Any, ctx: Context) -> None:
    """Bytes on disk, of files that were written for it."""
    ctx.progress(0, None, phase="measuring the size")
    for name, row in made.layers.items():
        row["values"] = palettes.distinct(net.module.get_submodule(name))
    path = ctx.scratch / "plain.npz"
    plain = palettes.write(path, made.before, [])
    path.unlink()
    packed = palettes.write(ctx.scratch / PACKED, net.module, list(made.layers))
    values = {n: r["values"] for n, r in made.layers.items()}
    report["packed"] = {"file": PACKED, "bytes": packed, "values": values}
    report["size"] = {"before": dense.stat().st_size, "before_deflated": plain, "packed": packed}
    report["notes"].append(
        f"Packed as palettes and indices, deflated, its numbers take {packed:,} bytes on disk; the version before "
        f"takes {report['size']['before']:,}, and {plain:,} deflated. It is a file of the version: {PACKED}, "
        "beside the dense weights that the version is trained and converted from."
    )


def _speed(made: Made, net: Net, ctx: Context) -> dict[str, Any]:
    """How many times faster than before in torch eager, both measured in turns."""
    ctx.progress(0, None, phase="measuring latency")
    inputs = tuple(t.to(ctx.device) for t in net.example(batch=1))
    runs = {}
    for name, module in (("before", made.before), ("after", net.module)):
        module.to(ctx.device).eval()

        def once(module: nn.Module = module) -> None:
            with torch.inference_mode():
                module(*inputs)
            if ctx.device == "cuda":
                torch.cuda.synchronize()

        runs[name] = once
    found = interleaved(
        runs, "before", batch=1, threads=torch.get_num_threads(), runtimes=dict.fromkeys(runs, "torch"),
        device=ctx.device, rounds=ROUNDS,
    ).ratios["after"]  # fmt: skip
    return {"batch": 1, "ratio": found.ratio, "low": found.low, "high": found.high, "rounds": found.rounds}


def _say(spec: ShareSpec, made: Made, report: dict[str, Any]) -> None:
    """What the figures mean, in words and in a figure."""
    notes, names = report["notes"], list(made.layers)
    if spec.method == "cluster":
        notes.append(SIZE_NOT_SPEED)
        bars = [{"name": "relative error", "x": names, "y": [made.layers[n]["relative_error"] for n in names]}]
        label = "‖shared − dense‖ ÷ ‖dense‖"
    else:
        notes.append(NOT_YET_SPEED)
        bars = [{"name": spec.method, "x": names, "y": [made.layers[n]["kept_norm"] for n in names]}]
        if made.plain:
            bars[0]["name"] = "channels permuted"
            y = [made.layers[n]["kept_norm_unpermuted"] for n in names]
            bars.append({"name": "as they lie", "x": names, "y": y})
        label = "kept norm"
        if report["macs"]["after"] is not None and report["macs"]["after"] >= report["macs"]["before"]:
            notes.append("Nothing got smaller: it does not need fewer multiply-accumulates than before.")
        speed = report.get("eager_speed")
        if speed and speed["high"] < 1:
            notes.append(f"In torch eager it is slower than before at batch 1: {speed['ratio']:.2f} times as fast.")
    if made.left_alone:
        notes.append(f"Left alone: {'; '.join(f'{n} ({why})' for n, why in list(made.left_alone.items())[:20])}.")
    report["figures"] = [
        {
            "title": f"{spec.method}, layer by layer",
            "kind": "bars",
            "x": {"label": "layer"},
            "y": {"label": label},
            "series": bars,
        }
    ]
