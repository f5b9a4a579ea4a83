"""Commands that make a network smaller (prune, share, quantize), and the one that says what it cost (evaluate)."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .cli_jobs import DatasetOption, Model, Seed, Set, Wait, run
from .cli_state import UsageError, read_json

Layer = Annotated[
    list[str] | None, typer.Option("--layer", "--layers", help="only this layer; again for more. All unless said")
]
Finetune = Annotated[
    str | None,
    typer.Option(help='training after it: "epochs=5 lr=0.01", JSON, or a JSON file. Unless this or the next two: none'),
]
Epochs = Annotated[int | None, typer.Option(help="epochs of that training (10, where there is any)")]
Rate = Annotated[float | None, typer.Option(help="its peak learning rate (0.05, where there is any)")]
Dry = Annotated[bool, typer.Option("--dry-run", help="say what could be done, and what it would give; change nothing")]
Drop = Annotated[float | None, typer.Option(help="accuracy that may be lost; one point is 0.01 (0.01)")]


def add_to(app: typer.Typer) -> None:
    for command in (prune, share, quantize, evaluate):
        app.command()(command)


def training(finetune: str | None, epochs: int | None, lr: float | None) -> dict[str, Any] | None:
    """The `finetune` of a job from the three options that say it."""
    said = {k: v for k, v in {"epochs": epochs, "lr": lr}.items() if v is not None}
    return dict(read_json(finetune, "--finetune", fields=True) or {}) | said or None


def share_of(option: str, value: float | None) -> float | None:
    """A share; whoever says 50 means 0.5. Raises UsageError."""
    if value is not None and 1 < value <= 100:
        raise UsageError(f"{option} is a share of 1: for {value:g} % say {option} {value / 100:g}")
    return value


def prune(
    context: typer.Context,
    model: Model,
    method: Annotated[
        str, typer.Option(help="channel (really removed), l1_unstructured, random_unstructured, ln_structured, n_m")
    ],
    amount: Annotated[
        float | None, typer.Option(help="share of the weights or channels that goes; half of them is 0.5 (0.5)")
    ] = None,
    dataset: DatasetOption = None,
    scope: Annotated[str | None, typer.Option(help="layer, global (layer)")] = None,
    layer: Layer = None,
    importance: Annotated[str | None, typer.Option(help="magnitude, random, taylor (magnitude)")] = None,
    norm: Annotated[float | None, typer.Option(help="n of ln_structured (2)")] = None,
    round_to: Annotated[int | None, typer.Option(help="channels are kept in multiples of this (1)")] = None,
    steps: Annotated[int | None, typer.Option(help="prunings, with a part of the training after each (1)")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="of several steps: one_shot, iterative, gradual (iterative)")
    ] = None,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="measure what each layer could bear")] = False,
    finetune: Finetune = None,
    finetune_epochs: Epochs = None,
    finetune_lr: Rate = None,
    seed: Seed = None,
    dry: Dry = False,
    more: Set = None,
    wait: Wait = True,
) -> None:
    """Removes weights or channels."""
    fields = {
        "model": model, "method": method, "amount": share_of("--amount", amount), "dataset": dataset,
        "scope": scope, "layers": layer or None,
        "importance": importance, "norm": norm, "round_to": round_to, "steps": steps, "schedule": schedule,
        "sensitivity": sensitivity or None, "finetune": training(finetune, finetune_epochs, finetune_lr), "seed": seed,
        "dry_run": dry or None,
    }  # fmt: skip
    run(context, "prune", wait, more, fields)


def share(
    context: typer.Context,
    model: Model,
    method: Annotated[str, typer.Option(help="grouped_conv, depthwise_separable, low_rank, cluster")],
    dataset: DatasetOption = None,
    groups: Annotated[int | None, typer.Option(help="grouped_conv: how many (2)")] = None,
    ranks: Annotated[str | None, typer.Option(help="low_rank: energy, vbmf (energy)")] = None,
    energy: Annotated[
        float | None, typer.Option(help="low_rank: share of the squared singular values kept (0.9)")
    ] = None,
    clusters: Annotated[int | None, typer.Option(help="cluster: weights in a layer's palette (16)")] = None,
    layer: Layer = None,
    finetune: Finetune = None,
    finetune_epochs: Epochs = None,
    finetune_lr: Rate = None,
    seed: Seed = None,
    dry: Dry = False,
    more: Set = None,
    wait: Wait = True,
) -> None:
    """Shares parameters: convolutions in groups, low-rank factors, palettes of weights."""
    fields = {
        "model": model, "method": method, "dataset": dataset, "groups": groups, "ranks": ranks, "energy": energy,
        "clusters": clusters, "layers": layer or None,
        "finetune": training(finetune, finetune_epochs, finetune_lr), "seed": seed, "dry_run": dry or None,
    }  # fmt: skip
    run(context, "share", wait, more, fields)


def quantize(
    context: typer.Context,
    model: Model,
    target: Annotated[str, typer.Option(help="openvino, onnxruntime, tensorrt, tensorrt_rtx")],
    dataset: DatasetOption = None,
    mode: Annotated[str | None, typer.Option(help="ptq (calibrated), qat (trained) (ptq)")] = None,
    calibration_samples: Annotated[int | None, typer.Option(help="rows of the training split (300)")] = None,
    max_accuracy_drop: Annotated[
        float | None, typer.Option(help="accuracy that may be lost; 0.01: one point. Unbounded unless said")
    ] = None,
    finetune: Annotated[
        str | None,
        typer.Option(help="how qat trains; see prune. Unless this or the next two: 3 epochs at a rate of 0.001"),
    ] = None,
    finetune_epochs: Epochs = None,
    finetune_lr: Rate = None,
    seed: Seed = None,
    dry: Dry = False,
    more: Set = None,
    wait: Wait = True,
) -> None:
    """int8, from calibration samples or trained; convert it with --precision int8 afterwards."""
    fields = {
        "model": model, "target": target, "dataset": dataset, "mode": mode, "calibration_samples": calibration_samples,
        "max_accuracy_drop": share_of("--max-accuracy-drop", max_accuracy_drop),
        "finetune": training(finetune, finetune_epochs, finetune_lr), "seed": seed, "dry_run": dry or None,
    }  # fmt: skip
    run(context, "quantize", wait, more, fields)


def evaluate(
    context: typer.Context,
    model: Model,
    dataset: Annotated[str, typer.Option(help="name, or name@2")],
    baseline: Annotated[str | None, typer.Option(help="the version to compare with; none unless said")] = None,
    max_accuracy_drop: Drop = None,
    samples: Annotated[int | None, typer.Option(help="rows of the test split; all unless given")] = None,
    confidence: Annotated[float | None, typer.Option(help="of the intervals (0.95)")] = None,
    more: Set = None,
    wait: Wait = True,
) -> None:
    """Accuracy with its confidence interval, and latency, together; against a baseline, with a verdict."""
    fields = {
        "model": model, "dataset": dataset, "baseline": baseline,
        "max_accuracy_drop": share_of("--max-accuracy-drop", max_accuracy_drop),
        "samples": samples, "confidence": confidence,
    }  # fmt: skip
    run(context, "evaluate", wait, more, fields)
