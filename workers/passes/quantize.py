"""quantize: int8 as Q/DQ nodes in an ONNX file, calibrated after training (NNCF) or trained; guarded by accuracy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from app.domain import quantizable
from app.domain.records import Metrics
from app.domain.spec import Training
from app.domain.specs import QuantizeSpec
from app.errors import Unprocessable
from app.runtimes._graphs import opset
from workers.context import Context
from workers.net import Net, load
from workers.nn import qat, qdq
from workers.nn.data import Data
from workers.nn.executed import executed
from workers.nn.export import to_onnx
from workers.nn.finetune import finetune
from workers.nn.foretold import foretell
from workers.nn.guarded import Guarded, figures, verdict
from workers.nn.leaving import Try, best, leave
from workers.nn.macs import onnx_macs, onnx_parameters
from workers.nn.masks import inherited
from workers.nn.ptq import SYMMETRIC, Recipe, further, recipes
from workers.nn.quality import Answers, paired, quality
from workers.nn.quantizing import Network, calibration
from workers.passes import Outcome
from workers.passes._source import Source, open_source

SEED = 0
PLAN = Training(epochs=3, lr=0.001)
ALONE = 16  # layers left in higher precision whose own drop is measured


def run(spec: QuantizeSpec, ctx: Context) -> Outcome:
    """Raises Conflict for what cannot be quantized (again), Unprocessable for rows that calibrate nothing."""
    ctx.progress(0, None, phase="loading")
    version, folder = ctx.source()
    quantizable.check(spec, version)
    data = ctx.dataset().fit_to(version.signature) if ctx.job.dataset else None
    if data is None and not spec.dry_run:
        raise Unprocessable("quantize needs a data set: its training split is calibrated with", code="dataset_missing")
    rows = calibration(data, spec.calibration_samples, spec.seed) if data else None
    preferred = {version.signature.inputs[0].name: (1, *rows.x.shape[1:])} if rows is not None else {}
    source = open_source(version, folder, ctx, None, preferred, SEED)
    plain, notes = qdq.opened(source.onnx, ctx.scratch)
    if spec.dry_run:
        return Outcome(None, {}, foretell(spec, version, folder, plain, source.plan, data, ctx, notes))
    assert data is not None
    assert rows is not None
    if len(rows) < spec.calibration_samples:
        notes.append(f"The training split has {len(rows)} rows, fewer than were asked for: all of them calibrate.")
    network = Network(spec, version, ctx, plain, rows)
    ctx.progress(0, None, phase="measuring accuracy")
    before = network.judged(plain, data, "val")
    report: dict[str, Any] = {"mode": spec.mode, "target": spec.target}
    if spec.mode == "qat":
        network, report["training"] = _trained(network, folder, data, before, notes)
    guarded, report["tried"] = _guarded(network, data, before, notes)
    return _outcome(network, source, data, guarded, before, report, notes)


def _trained(
    network: Network, folder: Path, data: Data, before: Answers, notes: list[str]
) -> tuple[Network, dict[str, Any]]:
    """The network after training with rounding, and how that went; beside it what calibration alone would give."""
    spec, version, ctx = network.spec, network.version, network.ctx
    ctx.progress(0, None, phase="calibrating without training")
    untrained = network.judged(network.quantize(Recipe()), data, "val")
    net = load(folder, version)
    batches = [x for x, _ in network.rows.batches(64)]
    rounding = qat.aware(net.module, batches, signed=spec.target in SYMMETRIC)
    masks = qat.masks(inherited(net, version), rounding)
    fitted = finetune(
        replace(net, module=rounding), version, None, data, spec.finetune or PLAN, ctx,
        masks=masks or None, phase="training with rounding",
    )  # fmt: skip
    qat.give_back(rounding, net.module)
    path = ctx.scratch / "trained.onnx"
    _export(net, path, ctx)
    plain, _ = qdq.opened(path, ctx.scratch)
    found = replace(network, plain=plain, reference=None)
    ctx.progress(0, None, phase="calibrating")
    trained = found.judged(found.quantize(Recipe()), data, "val")
    report = fitted.summary() | {
        "ptq_quality": untrained.value(),
        "qat_quality": trained.value(),
        "split": "val",
        "gain_over_ptq": paired(trained, untrained),
    }
    if trained.value() <= untrained.value():
        notes.append(
            f"Training gained nothing over calibration alone: {trained.name} {trained.value():.4f} against "
            f"{untrained.value():.4f} on the validation split. Mode ptq gives as much, sooner."
        )
    return found, report


def _export(net: Net, path: Path, ctx: Context) -> None:
    ctx.progress(0, None, phase="exporting to ONNX")
    to_onnx(net.module, net.signature, net.example(), path)


def _guarded(network: Network, data: Data, before: Answers, notes: list[str]) -> tuple[Guarded, list[dict[str, Any]]]:
    """The recipe nearest to the float network; where that drops too much, fewer int8 layers."""
    spec, ctx = network.spec, network.ctx
    tried: list[dict[str, Any]] = []

    def calibrated(recipe: Recipe) -> tuple[float, Recipe, Any]:
        ctx.progress(len(tried), None, phase=f"calibrating: {recipe.told}")
        model = network.quantize(recipe)
        error = network.error(model)
        tried.append({"recipe": recipe.told, "error": error})
        return error, recipe, model

    found = [calibrated(recipe) for recipe in recipes(network.plain)]
    _, recipe, model = min(found, key=lambda one: one[0])
    if not qdq.int8_layers(model):
        raise Unprocessable(
            "nothing of this network can be quantized: no convolution or matrix product with weights of its own",
            code="nothing_to_quantize",
        )

    def attempt(left: tuple[str, ...], model: Any = None) -> Try:
        ctx.progress(0, None, phase=f"leaving {len(left)} layers in higher precision" if left else "measuring accuracy")
        made = model if model is not None else network.quantize(recipe, left)
        answers = network.judged(made, data, "val")
        return Try(made, left, answers, before.value() - answers.value())

    first = attempt((), model)
    bound = spec.max_accuracy_drop
    if bound is None or first.drop <= bound:
        return Guarded(first, [first], {}, {}, recipe), tried
    for other in further(recipe, spec.target):
        _, _, model = calibrated(other)
        second = attempt((), model)
        if second.drop < first.drop:
            first, recipe = second, other
    if first.drop <= bound:
        return Guarded(first, [first], {}, {}, recipe), tried
    alone = network.ranked(first.model, lambda done, n: ctx.progress(done, n, "layers", "ranking layers"))
    tries = leave(list(alone), bound, attempt, first)
    chosen = best(tries, bound)
    drops: dict[str, float] = {}
    for name in chosen.left[:ALONE]:
        ctx.progress(len(drops), len(chosen.left), "layers", "measuring what each layer costs")
        answers = network.judged(qdq.alone(first.model, network.plain, name), data, "val")
        drops[name] = before.value() - answers.value()
    if chosen.drop > bound:
        notes.append(
            f"The bound was not met: of {len(tries)} networks tried, with up to {len(tries[-1].left)} of {len(alone)} "
            f"layers in higher precision, the best loses {chosen.drop:.4f}; {bound:g} is allowed."
        )
    return Guarded(chosen, tries, alone, drops, recipe), tried


def _outcome(
    network: Network,
    source: Source,
    data: Data,
    guarded: Guarded,
    before: Answers,
    report: dict[str, Any],
    notes: list[str],
) -> Outcome:
    spec, version, ctx, model = network.spec, network.version, network.ctx, guarded.chosen.model
    folder = ctx.folder("version")
    onnx.save(model, str(folder / "model.onnx"))
    labels, int8 = network.labels, qdq.int8_layers(model)
    kept = [labels[n] for n in labels if n not in int8]
    if ctx.split == "val":
        then, now = before, guarded.chosen.found
    else:
        ctx.progress(0, None, phase="measuring accuracy")
        original, _ = qdq.opened(source.onnx, ctx.scratch)
        then, now = network.judged(original, data, ctx.split), network.judged(model, data, ctx.split)
    change = paired(now, then)
    bytes_ = {
        "before": source.onnx.stat().st_size,
        "after": (folder / "model.onnx").stat().st_size,
        "source": version.bytes,
    }
    judged = verdict(spec, guarded, before, change, labels, version.ref, ctx.split)
    rows = {"rows": len(network.rows), "split": "train", "seed": spec.seed, "dataset": data.ref}
    report |= {
        "recipe": guarded.recipe.told,
        "calibration": rows,
        "layers": {labels[n]: {"precision": "int8" if n in int8 else "float"} for n in labels},
        "quantized_layers": [labels[n] for n in labels if n in int8],
        "higher_precision": [
            {"layer": labels[n], "error_alone": guarded.alone[n], "drop_alone": guarded.drops.get(n)}
            for n in guarded.chosen.left
        ],
        "sensitivity": {labels[n]: error for n, error in guarded.alone.items()},
        "bytes": bytes_,
        "quality_before": then.value(),
        "quality_after": now.value(),
        "quality_change": change,
        "guard": judged.guard if judged else None,
        "verdict": judged.told if judged else None,
        "notes": notes,
        "figures": figures(labels, guarded, then, now, ctx.split),
    }
    if judged:
        notes.append(judged.told["told"])
    if bytes_["after"] >= bytes_["before"]:
        notes.append("The file did not get smaller: scales and zero points weigh as much as the weights saved.")
    notes += _in_onnxruntime(spec, folder, labels, ctx)
    if left_out := [n for n in kept if n not in {labels[m] for m in guarded.chosen.left}]:
        notes.append(f"In float, because what they multiply is not quantized: {', '.join(left_out[:20])}.")
    quantized = {
        "target": spec.target,
        "mode": spec.mode,
        "recipe": guarded.recipe.told,
        "calibration": rows,
        "int8_layers": len(int8),
        "names": {node: label for node, label in labels.items() if node != label},
        "higher_precision": kept,
        "max_accuracy_drop": spec.max_accuracy_drop,
        "drop": guarded.chosen.drop,
    }
    record = data.record
    return Outcome(
        folder,
        {
            "format": "onnx",
            "signature": version.signature,
            "parameters": version.parameters if version.parameters is not None else onnx_parameters(source.onnx),
            "macs": version.macs if version.macs is not None else onnx_macs(source.onnx, source.plan.shapes),
            "sparsity": version.sparsity,
            "metrics": Metrics(
                quality=quality(now, data.ref, ctx.split), layer_sparsity=version.metrics.layer_sparsity
            ),
            "task": version.task or data.task,
            "labels": version.labels or record.labels,
            "preprocess": version.preprocess or record.preprocess,
            "trainable": False,
            "verdict": judged.word if judged else None,
            "notes": tuple(notes),
            "details": {"quantized": quantized, "opset": opset(model)},
        },
        report,
    )


def _in_onnxruntime(spec: QuantizeSpec, folder: Path, labels: dict[str, str], ctx: Context) -> list[str]:
    """Its kernels want int8 on both sides of a layer: what GELU, SiLU or an output follows is computed in float."""
    if spec.target != "onnxruntime":
        return []
    found = executed(spec.target, None, folder, ctx.scratch) or {}
    floats = [labels.get(name, name) for name, precision in found.items() if precision != "int8"]
    if not floats:
        return []
    if len(floats) == len(found):
        return [
            "ONNX Runtime will compute no layer of it in int8: it has no kernel for layers that an activation such as "
            "GELU or SiLU, or an output, follows in float. convert refuses that; OpenVINO may take it."
        ]
    return [
        f"ONNX Runtime will compute {len(floats)} of {len(found)} layers in float, because what follows them is float "
        f"(GELU, SiLU, an output), or a factor of them is: {', '.join(floats[:20])}."
    ]
