"""Commands that train and convert, and that look after jobs (jobs …)."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .cli_shown import brought, shown
from .cli_state import UsageError, leave, pairs, state
from .progress import figure
from .records import Job

Model = Annotated[str, typer.Argument(help="name@3, or name for the newest version that will do")]
DatasetOption = Annotated[str | None, typer.Option("--dataset", help="name, or name@2")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="until it has ended, with a progress bar")]
Set = Annotated[list[str] | None, typer.Option("--set", help="any other field of the job: KEY=VALUE, nested with dots")]
Seed = Annotated[int | None, typer.Option(help="of everything that is drawn (0)")]

jobs = typer.Typer(help="Lists, shows, watches, cancels and retries jobs.", no_args_is_help=True, rich_markup_mode=None)


def add_to(app: typer.Typer) -> None:
    for command in (train, convert, kinds):
        app.command()(command)
    app.add_typer(jobs, name="jobs")


def run(
    context: typer.Context,
    kind: str,
    wait: bool,
    more: list[str] | None,
    fields: dict[str, Any],
) -> None:
    """Submits and, unless told otherwise, follows to the end and prints what was found."""
    told = state(context)
    # `--set` speaks last, and into nested fields too: finetune.lr=0.01 beside --finetune-epochs.
    spec = _merged({key: value for key, value in fields.items() if value is not None}, pairs(more))
    job = told.client.jobs.submit(kind, **spec)
    told.finish(job, wait, shown)


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {k: _merged(one[k], v) for k, v in other.items() if isinstance(v, dict) and isinstance(one.get(k), dict)}
    return one | other | both


def train(
    context: typer.Context,
    model: Model,
    dataset: Annotated[str, typer.Option(help="name, or name@2")],
    epochs: Annotated[int | None, typer.Option(help="passes over the training split (10)")] = None,
    batch_size: Annotated[int | None, typer.Option(help="rows of a step (64)")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam, adamw (sgd)")] = None,
    lr: Annotated[float | None, typer.Option(help="the peak learning rate (0.05)")] = None,
    momentum: Annotated[float | None, typer.Option(help="of SGD; beta1 of Adam (0.9)")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="(0)")] = None,
    schedule: Annotated[str | None, typer.Option(help="onecycle, cosine, constant, step (onecycle)")] = None,
    loss: Annotated[str | None, typer.Option(help="auto, cross_entropy, mse (auto)")] = None,
    amp: Annotated[str | None, typer.Option(help="auto, off, bf16 (auto)")] = None,
    early_stopping: Annotated[
        int | None, typer.Option(help="epochs without a better validation figure before it ends; never unless said")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="a version whose answers are learnt too; none unless said")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="softens the teacher's answers (4)")] = None,
    alpha: Annotated[float | None, typer.Option(help="the teacher's share of the loss (0.5)")] = None,
    from_scratch: Annotated[bool | None, typer.Option("--from-scratch", help="draw the weights anew")] = None,
    seed: Seed = None,
    more: Set = None,
    wait: Wait = True,
) -> None:
    """Fine-tunes a model, or trains it from scratch."""
    fields = {
        "model": model, "dataset": dataset, "epochs": epochs, "batch_size": batch_size, "optimizer": optimizer,
        "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "schedule": schedule, "loss": loss, "amp": amp,
        "early_stopping": early_stopping, "teacher": teacher, "temperature": temperature, "alpha": alpha,
        "from_scratch": from_scratch or None, "seed": seed,
    }  # fmt: skip
    run(context, "train", wait, more, fields)


def convert(
    context: typer.Context,
    model: Model,
    target: Annotated[str, typer.Option(help="openvino, onnxruntime, tensorrt, tensorrt_rtx")],
    precision: Annotated[str | None, typer.Option(help="fp32, tf32, fp16, bf16, int8 (fp32)")] = None,
    max_batch: Annotated[int | None, typer.Option(help="the most rows of a run (64)")] = None,
    dataset: DatasetOption = None,
    shape: Annotated[list[str] | None, typer.Option(help="INPUT=1,3,224,224 for dynamic dimensions")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="how far answers may lie from the source's; by precision unless said")
    ] = None,
    bucket: Annotated[
        list[int] | None, typer.Option(help="TensorRT: the largest batch of a profile; once for each, ascending")
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(min=0, max=5, help="TensorRT: 0 is the quickest build, 5 the most thorough")
    ] = None,
    workspace_bytes: Annotated[int | None, typer.Option(help="TensorRT: GPU memory that a layer may use")] = None,
    sparse: Annotated[
        bool | None, typer.Option(help="TensorRT: kernels for 2:4 weights, else where there are such weights")
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="TensorRT: only weights have changed since the last plan; see `kinds`")
    ] = False,
    more: Set = None,
    wait: Wait = True,
) -> None:
    """Builds an engine, checks its answers against the source, and measures it."""
    fields = {
        "model": model, "target": target, "precision": precision, "max_batch": max_batch, "dataset": dataset,
        "shapes": _shapes(shape), "tolerance": tolerance, "buckets": bucket or None,
        "optimization_level": optimization_level, "workspace_bytes": workspace_bytes, "sparse": sparse,
        "refit": refit or None,
    }  # fmt: skip
    run(context, "convert", wait, more, fields)


def _shapes(given: list[str] | None) -> dict[str, list[int]] | None:
    found = {}
    for item in given or ():
        name, _, dims = item.rpartition("=")
        if not name or not all(d.strip().isdigit() for d in dims.split(",")):
            raise UsageError(f"{item!r} is not INPUT=1,3,224,224")
        found[name] = [int(d) for d in dims.split(",")]
    return found or None


def kinds(context: typer.Context) -> None:
    """The menu of jobs, with JSON schemas and which targets this installation can build."""
    told = state(context)
    told.answer(told.client.kinds())


@jobs.command("submit")
def jobs_submit(
    context: typer.Context,
    kind: str,
    fields: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE, nested with dots")] = None,
    wait: Wait = True,
) -> None:
    """Submits a job of any kind."""
    run(context, kind, wait, fields, {})


@jobs.command("list")
def jobs_list(
    context: typer.Context,
    kind: Annotated[str | None, typer.Option()] = None,
    status: Annotated[str | None, typer.Option()] = None,
    model: Annotated[str | None, typer.Option()] = None,
    parent: Annotated[str | None, typer.Option(help="the trials of this search or optimize job")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 20,
) -> None:
    """The newest first."""
    told = state(context)
    found = told.client.jobs.list(kind=kind, status=status, model=model, parent=parent, limit=limit)
    rows = [[j.id, j.kind, j.status, j.phase, j.model, brought(j), j["created_at"]] for j in found]
    columns = ["job", "kind", "status", "phase", "from", "found", "created"]
    told.answer({"items": found}, lambda: told.table(columns, rows))


@jobs.command("show")
def jobs_show(context: typer.Context, job: str) -> None:
    """One job, whole."""
    told = state(context)
    told.answer(told.client.jobs.get(job))


@jobs.command("watch")
def jobs_watch(
    context: typer.Context, job: str, log: Annotated[bool, typer.Option("--log", help="its log lines too")] = False
) -> None:
    """Follows a job to its end and prints what it found; exit code 1 unless it succeeds, 4 and 5 by its verdict."""
    told = state(context)
    if log and not told.as_json:
        for event in told.client.jobs.watch(job):
            fields = "  ".join(f"{k}={figure(v)}" for k, v in event.data.items() if v is not None)
            told.say(f"{event.type:8} {fields}")
    ended = told.follow(told.client.jobs.get(job))
    told.answer(ended, lambda: shown(told, ended))
    leave(ended)


@jobs.command("cancel")
def jobs_cancel(context: typer.Context, job: str, wait: Wait = True) -> None:
    """Stops a job; running work within seconds."""
    told = state(context)
    found = told.client.jobs.cancel(job)
    if wait:
        found = told.client.wait(found, 60.0, check=False)
    told.answer(found, lambda: told.say(found.status))


@jobs.command("retry")
def jobs_retry(context: typer.Context, job: str, wait: Wait = True) -> None:
    """Runs a failed or cancelled job again."""
    told = state(context)
    again: Job = told.client.jobs.retry(job)
    told.finish(again, wait, shown)
