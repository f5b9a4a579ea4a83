"""Commands that try many things (search, optimize), do them again (replay), and tell what came of it (report)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_jobs import DatasetOption, Model, Seed, Set, Wait, run
from .cli_report import summary
from .cli_shown import shown
from .cli_smaller import Drop, Dry, Epochs, Rate, share_of, training
from .cli_state import UsageError, leave, pairs, read_json, state
from .records import Job

_RANGE = re.compile(r"^(-?[\d.]+(?:[eE]-?\d+)?)\.\.(-?[\d.]+(?:[eE]-?\d+)?)(?::(.*))?$")


def add_to(app: typer.Typer) -> None:
    for command in (search, optimize, replay, report):
        app.command()(command)


def search(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="what the chain starts from; with --estimator the winner's name")],
    dataset: DatasetOption = None,
    space: Annotated[
        list[str] | None,
        typer.Option(help="train.lr=0.01,0.1 · prune.amount=0.2..0.8 · train.lr=0.001..0.3:log · a=1..9:step=2"),
    ] = None,
    step: Annotated[
        list[str] | None, typer.Option(help='a job of the chain: "train epochs=5 lr=0.1"; again for the next')
    ] = None,
    chain: Annotated[str | None, typer.Option(help="the whole chain: JSON, or a JSON file")] = None,
    estimator: Annotated[str | None, typer.Option(help="of scikit-learn: random_forest, …")] = None,
    param: Annotated[list[str] | None, typer.Option(help="of the estimator, not searched: KEY=VALUE")] = None,
    cv: Annotated[int | None, typer.Option(help="folds of an estimator's cross-validation (3)")] = None,
    sampler: Annotated[str | None, typer.Option(help="grid, random, tpe, gp, nsga2 (tpe)")] = None,
    trials: Annotated[int | None, typer.Option(help="how many; unless said 20, or all of a grid")] = None,
    parallel: Annotated[int | None, typer.Option(help="trials at a time (4)")] = None,
    objective: Annotated[
        list[str] | None, typer.Option(help="quality, parameters, …; again for more (quality)")
    ] = None,
    pruner: Annotated[str | None, typer.Option(help="none, median, asha, hyperband, halving (none)")] = None,
    seed: Seed = None,
    more: Set = None,
    wait: Wait = True,
) -> None:
    """Searches hyper-parameters of a chain of jobs, or of a scikit-learn estimator."""
    where = spaces(space)
    steps = read_json(chain, "--chain") or [_step(words) for words in step or ()]
    if not steps and estimator is None:  # the kinds that the space names, in their order
        steps = [{"kind": kind} for kind in dict.fromkeys(_kind(name) for name in where)]
    fields: dict[str, Any] = {
        "model": model, "dataset": dataset, "space": where or None, "chain": steps or None, "estimator": estimator,
        "params": pairs(param) or None, "cv": cv, "sampler": sampler, "trials": trials, "parallel": parallel,
        "objectives": objective or None, "pruner": pruner, "seed": seed,
    }  # fmt: skip
    run(context, "search", wait, more, fields)


def optimize(
    context: typer.Context,
    model: Model,
    dataset: Annotated[str, typer.Option(help="name, or name@2")],
    target: Annotated[
        list[str] | None, typer.Option(help="openvino, onnxruntime, …; again for more (openvino)")
    ] = None,
    max_accuracy_drop: Drop = None,
    objective: Annotated[str | None, typer.Option(help="latency, throughput, size (latency)")] = None,
    batch: Annotated[
        int | None, typer.Option(help="rows that speed is measured with (1 for latency, 32 for throughput)")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="designs to try (12)")] = None,
    parallel: Annotated[int | None, typer.Option(help="trials at a time (1)")] = None,
    passes: Annotated[
        list[str] | None, typer.Option("--pass", help="prune, share, quantize; again for more (prune and quantize)")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="random, tpe, nsga2 (tpe)")] = None,
    confidence: Annotated[float | None, typer.Option(help="of the verdict (0.95)")] = None,
    time_limit: Annotated[
        float | None, typer.Option(help="seconds after which no design is begun; none unless said")
    ] = None,
    finetune: Annotated[
        str | None,
        typer.Option(help="of what lost weights; see prune. Unless this or the next two: 4 epochs at a rate of 0.02"),
    ] = None,
    finetune_epochs: Epochs = None,
    finetune_lr: Rate = None,
    seed: Seed = None,
    dry: Dry = False,
    more: Set = None,
    wait: Wait = True,
) -> None:
    """Finds the fastest version that is proven to keep its accuracy."""
    fields = {
        "model": model, "dataset": dataset, "targets": target or None,
        "max_accuracy_drop": share_of("--max-accuracy-drop", max_accuracy_drop),
        "objective": objective, "batch": batch, "trials": trials, "parallel": parallel, "passes": passes or None,
        "sampler": sampler, "confidence": confidence, "time_limit_s": time_limit,
        "finetune": training(finetune, finetune_epochs, finetune_lr), "seed": seed, "dry_run": dry or None,
    }  # fmt: skip
    run(context, "optimize", wait, more, fields)


def replay(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="the version whose recipe it is: name@5")],
    on: Annotated[
        str,
        typer.Option(
            help="another checkpoint of the same architecture: name@1, or a name: its newest upload that fits"
        ),
    ],
    dataset: Annotated[str | None, typer.Option(help="name, or name@2; those of the recipe unless said")] = None,
) -> None:
    """Does what made a version again, to another checkpoint of the same architecture."""
    told = state(context)
    steps: list[Job] = []

    def followed(job: Job) -> Job:
        if not steps:
            told.tell(f"the recipe of {model}, from {job.model} on")
        told.warn(job)
        steps.append(told.follow(job))
        return steps[-1]

    made = told.client.replay(model, on, dataset=dataset, follow=followed)
    told.answer(made, lambda: shown(told, steps[-1]))
    leave(steps[-1])


def report(
    context: typer.Context,
    job: str,
    html: Annotated[Path | None, typer.Option(help="a file for the page with plots; it needs nothing else")] = None,
) -> None:
    """What a job has found, in short; all of it with --json, or as a page with plots."""
    told = state(context)
    if html is None:
        whole = told.client.jobs.report(job)
        told.answer(whole, lambda: summary(told, Job(whole)))
        return
    with told.err.status("drawing"):
        page = told.client.jobs.report_html(job)
    html.write_text(page, encoding="utf-8")
    told.answer({"file": str(html), "bytes": len(page.encode())}, lambda: told.say(str(html)))


def spaces(given: list[str] | None) -> dict[str, Any]:
    """`["train.lr=0.01,0.1", "prune.amount=0.2..0.8"]` → choices and ranges by name. Raises UsageError."""
    found: dict[str, Any] = {}
    for item in given or ():
        name, sign, told = item.partition("=")
        if not sign or not name or not told:
            raise UsageError(f"{item!r} is no space: say train.lr=0.01,0.1 or prune.amount=0.2..0.8")
        if name in found:
            raise UsageError(f"--space names {name} twice")
        ends = _RANGE.match(told)
        if ends is None and ".." in told and not told.lstrip().startswith(("[", '"')):
            raise UsageError(f"{item!r} is no range: it takes both ends, as in {name}=0.1..0.8")
        found[name] = _choices(told) if ends is None else _range(item, ends)
    return found


def _range(item: str, ends: re.Match[str]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = {"low": _value(ends[1]), "high": _value(ends[2])}
        for word in filter(None, (ends[3] or "").split(":")):
            name, sign, value = word.partition("=")
            if name not in ("log", "step", "type") or (name == "log") == bool(sign):
                raise ValueError
            found[name] = True if name == "log" else value if name == "type" else json.loads(value)
    except ValueError:
        raise UsageError(f"{item!r} is no range: say 0.2..0.8, 0.001..0.3:log or 16..128:step=16") from None
    return found


def _choices(told: str) -> list[Any]:
    if told.lstrip().startswith("["):
        found = read_json(told, "--space")
        return found if isinstance(found, list) else [found]
    return [_plain(word.strip()) for word in told.split(",")]


def _plain(word: str) -> Any:
    """JSON where it is, else text."""
    try:
        return json.loads(word)
    except ValueError:
        return word


def _value(word: str) -> int | float:
    try:
        return int(word)
    except ValueError:
        return float(word)


def _step(words: str) -> dict[str, Any]:
    kind, *fields = words.split()
    return {"kind": kind} | pairs(fields)


def _kind(name: str) -> str:
    """`train` of "train.lr" and of "1.train.lr"."""
    parts = name.split(".")
    if len(parts) < 2:
        raise UsageError(f"--space {name} names no field of a job: say train.lr, or --estimator")
    return parts[1] if parts[0].isdigit() and len(parts) > 2 else parts[0]
