"""Commands about what exists: models, data sets, deployments, and predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from .cli_shown import shown
from .cli_state import State, UsageError, read_json, state
from .cli_words import size
from .records import Record
from .uploads import write_npz

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="until it has ended")]
IMAGES = {".png", ".jpg", ".jpeg"}


def add_to(app: typer.Typer) -> None:
    for command in (
        push, dataset, datasets, models, lineage, download, deploy, deployments, predict, delete, rollback, health,
    ):  # fmt: skip
        app.command()(command)


def push(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="a checkpoint: .safetensors, .pt, .pth, .onnx, TorchScript, zip or tar")],
    name: Annotated[str, typer.Option(help="the model's name")],
    architecture: Annotated[str | None, typer.Option(help="a JSON file: graph, sequential or library")] = None,
    signature: Annotated[str | None, typer.Option(help="a JSON file: inputs and outputs")] = None,
    task: Annotated[str | None, typer.Option()] = None,
    labels: Annotated[str | None, typer.Option(help="names of the classes, with commas, or a JSON file")] = None,
    preprocess: Annotated[str | None, typer.Option(help="a JSON file: how encoded images become tensors")] = None,
    manifest: Annotated[str | None, typer.Option(help="a JSON file with any of the above")] = None,
    wait: Wait = True,
) -> None:
    """Uploads a model; version 1 of it, or the next, comes into being."""
    told = state(context)
    given = {
        "architecture": read_json(architecture, "--architecture"),
        "signature": read_json(signature, "--signature"),
        "task": task,
        "labels": _labels(labels),
        "preprocess": read_json(preprocess, "--preprocess"),
    }
    known = read_json(manifest, "--manifest") or {}
    fields = {key: known.get(key) for key in given} | {k: v for k, v in given.items() if v is not None}
    job = told.client.push(file, name, **fields, wait=False)
    told.finish(job, wait, shown, f"import {name}")


def _labels(given: str | None) -> list[str] | None:
    if given is None:
        return None
    if given.endswith(".json") or given.startswith("["):
        return [str(label) for label in read_json(given, "--labels")]
    return given.split(",")


def dataset(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help=".npz with x and y, .zip of images, .csv or .parquet")],
    name: Annotated[str, typer.Option(help="its name")],
    kind: Annotated[str | None, typer.Option(help="arrays, images or table; by the file's name unless said")] = None,
    target: Annotated[str | None, typer.Option(help="a table's column to predict")] = None,
    splits: Annotated[str | None, typer.Option(help="JSON")] = None,
    preprocess: Annotated[str | None, typer.Option(help="JSON")] = None,
) -> None:
    """Uploads a data set."""
    told = state(context)
    with told.err.status(f"uploading {file.name}"):
        made = told.client.datasets.push(
            name, file, kind=kind, target=target,
            splits=read_json(splits, "--splits"), preprocess=read_json(preprocess, "--preprocess"),
        )  # fmt: skip
    told.answer(made, lambda: told.say(str(made.get("ref") or made["name"])))


def datasets(context: typer.Context) -> None:
    """Lists the data sets."""
    told = state(context)
    found = told.client.datasets.list()
    rows = [[d.get("ref") or d.get("name"), d.get("kind"), d.get("classes"), size(d.get("bytes"))] for d in found]
    told.answer({"items": found}, lambda: told.table(["data set", "kind", "classes", "size"], rows))


def models(context: typer.Context, name: Annotated[str | None, typer.Argument(help="name or name@3")] = None) -> None:
    """Lists the models, a model's versions, or one version with all that is known of it."""
    told = state(context)
    if name and "@" in name:
        told.answer(told.client.models.version(name))
    elif name:
        found = told.client.models.get(name)
        told.answer(found, lambda: _versions(told, found["versions"]))
    else:
        items = told.client.models.list()
        rows = [[m.get("name"), len(m["versions"]) if "versions" in m else m.get("latest")] for m in items]
        told.answer({"items": items}, lambda: told.table(["model", "versions"], rows))


def _versions(told: State, versions: list[Record]) -> None:
    rows = []
    for v in versions:
        quality = (v.get("metrics") or {}).get("quality") or {}
        measured = f"{quality['value']:.4f} [{quality['low']:.4f}, {quality['high']:.4f}]" if quality else ""
        made = (v.get("made_by") or {}).get("spec", {}).get("kind")
        rows.append([v["ref"], v["format"], made, v.get("parent"), v.get("parameters"), size(v.get("bytes")), measured])
    told.table(["version", "format", "made by", "from", "parameters", "size", "quality"], rows)


def lineage(context: typer.Context, name: str) -> None:
    """The tree from upload to engines."""
    told = state(context)
    told.answer(told.client.models.lineage(name))


def download(
    context: typer.Context,
    ref: Annotated[str, typer.Argument(help="name@3")],
    to: Annotated[Path, typer.Option(help="a folder")] = Path(),
) -> None:
    """Every file of a version, checked against its SHA-256."""
    told = state(context)
    with told.err.status(f"downloading {ref}"):
        folder = told.client.models.download(ref, to)
    told.answer({"folder": str(folder)}, lambda: told.say(str(folder)))


def deploy(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="the deployment")],
    model: Annotated[str, typer.Argument(help="an engine: name@5, or name for the newest")],
    instances: Annotated[int | None, typer.Option(min=1)] = None,
    max_batch: Annotated[int | None, typer.Option(min=1)] = None,
    max_delay_ms: Annotated[float | None, typer.Option(min=0)] = None,
    max_queue: Annotated[int | None, typer.Option(min=1)] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="of the engine, all instances together")] = None,
    run_timeout_s: Annotated[float | None, typer.Option(help="after which a run counts as hanging")] = None,
    canary: Annotated[str | None, typer.Option(help="name@6=10: that version answers 10 % of the requests")] = None,
    max_error_rate: Annotated[float | None, typer.Option(help="the canary is taken back above it")] = None,
    max_p99_ms: Annotated[float | None, typer.Option(help="the canary is taken back above it")] = None,
    min_requests: Annotated[int | None, typer.Option(help="before the canary is judged")] = None,
    shadow: Annotated[str | None, typer.Option(help="name@6, or name@6=20: gets copies of 20 %")] = None,
    force: Annotated[bool, typer.Option(help="also a version whose verdict is rejected or unproven")] = False,
    wait: Wait = True,
    timeout: Annotated[float, typer.Option(help="seconds to wait; a plan for another GPU takes minutes")] = 300.0,
) -> None:
    """Puts an engine behind a name; the one before answers until the new one is warm.

    What is not said goes back to its default, a canary and a shadow too.
    """
    told = state(context)
    bounds = {"max_error_rate": max_error_rate, "max_p99_ms": max_p99_ms, "min_requests": min_requests}
    bounds = {name: value for name, value in bounds.items() if value is not None}
    if bounds and canary is None:
        raise UsageError("bounds are of a canary: say --canary too")
    options: dict[str, Any] = {
        "instances": instances,
        "max_batch": max_batch,
        "max_delay_ms": max_delay_ms,
        "max_queue": max_queue,
        "threads": threads,
        "run_timeout_s": run_timeout_s,
        "canary": None if canary is None else _share("--canary", canary, None) | bounds,
        "shadow": None if shadow is None else _share("--shadow", shadow, 100.0),
    }
    with told.err.status(f"deploying {model} as {name}"):
        made = told.client.deploy(name, model, wait=wait, timeout=timeout, force=force or None, **options)
    told.answer(made, lambda: told.say(f"{name}: {made['model']} {made['status']}"))


def _share(option: str, given: str, usual: float | None) -> dict[str, Any]:
    """`name@6=10` → the version, and its share in percent. Raises UsageError."""
    model, sign, percent = given.partition("=")
    try:
        share = float(percent) if sign else usual
    except ValueError:
        share = None
    if not model or share is None:
        raise UsageError(f"{option} takes a version and a percentage, such as digits@6=10, not {given!r}")
    return {"model": model, "percent": share}


def deployments(
    context: typer.Context, name: Annotated[str | None, typer.Argument(help="only this one, with all there is")] = None
) -> None:
    """Lists the deployments."""
    told = state(context)
    if name is not None:
        told.answer(told.client.deployments.get(name))
        return
    found = told.client.deployments.list()
    rows = [
        [d["name"], d["model"], d["status"], d.get("previous"), _beside(d.get("canary")), _beside(d.get("shadow"))]
        for d in found
    ]
    columns = ["deployment", "model", "status", "previous", "canary", "shadow"]
    told.answer({"items": found}, lambda: told.table(columns, rows))


def _beside(given: Mapping[str, Any] | None) -> str | None:
    return None if given is None else f"{given['model']} {given['percent']:g} %"


def predict(
    context: typer.Context,
    deployment: str,
    inputs: Annotated[list[str], typer.Argument(help=".npy, .npz, .json or image files, or JSON itself")],
    top_k: Annotated[int | None, typer.Option(min=1)] = None,
    output: Annotated[list[str] | None, typer.Option(help="only this output; again for more")] = None,
    timeout_ms: Annotated[float | None, typer.Option(min=0)] = None,
    save: Annotated[Path | None, typer.Option(help="write the outputs to this .npz")] = None,
) -> None:
    """Asks a deployment; the answer is JSON."""
    told = state(context)
    found = told.client.predict(deployment, _inputs(inputs), outputs=output, top_k=top_k, timeout_ms=timeout_ms)
    if save is not None:
        with save.open("wb") as file:
            write_npz(file, {name: np.asarray(value) for name, value in found["outputs"].items()})
    told.answer(found)


def _inputs(given: list[str]) -> Any:
    suffixes = {Path(word).suffix.lower() for word in given}
    if suffixes <= IMAGES:
        return Path(given[0]) if len(given) == 1 else [Path(word) for word in given]
    if len(given) > 1:
        raise UsageError("several files are taken only when all of them are images")
    word = given[0]
    if suffixes == {".npy"}:
        return np.load(word, allow_pickle=False)
    if suffixes == {".npz"}:
        with np.load(word, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    body = read_json(word, "the input")
    # Both the bare inputs and the whole body of /predict are taken.
    return body["inputs"] if isinstance(body, dict) and "inputs" in body else body


def delete(
    context: typer.Context,
    what: Annotated[str, typer.Argument(help="name@3, or the name of a deployment or data set")],
    is_deployment: Annotated[bool, typer.Option("--deployment")] = False,
    is_dataset: Annotated[bool, typer.Option("--dataset")] = False,
) -> None:
    """Deletes a version of a model, a deployment or a data set."""
    told = state(context)
    if is_deployment:
        told.client.deployments.delete(what)
    elif is_dataset:
        told.client.datasets.delete(what)
    elif "@" in what:
        told.client.models.delete(what)
    else:
        raise UsageError(f"say which version of {what} goes ({what}@1), or --deployment, or --dataset")
    told.answer({"deleted": what}, lambda: told.say(f"deleted {what}"))


def rollback(context: typer.Context, name: str, wait: Wait = True) -> None:
    """Puts the version before back behind a deployment."""
    told = state(context)
    made = told.client.rollback(name, wait=wait)
    told.answer(made, lambda: told.say(f"{name}: {made['model']} {made['status']}"))


def health(context: typer.Context) -> None:
    """Whether the service lives and is ready; exit code 1 when it is not."""
    told = state(context)
    found = told.client.health()
    told.answer(found, lambda: told.say(json.dumps(found)))
    if not found["ready"]:
        raise typer.Exit(1)
