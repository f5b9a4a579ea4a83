"""convert: builds an engine, checks its answers against the source, and measures it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from app import runtimes
from app.domain.compression import check_int8
from app.domain.records import Latency, Metrics, Parity, Quality, Version
from app.domain.specs import TENSORRT_OPTIONS, ConvertSpec
from app.errors import ParityError, Unavailable, Unprocessable
from app.runtimes import BuildOptions, Engine, LoadOptions, Runtime
from workers.context import Context
from workers.nn.data import Data
from workers.nn.macs import onnx_macs
from workers.nn.measure import latency
from workers.nn.parity import INPUTS, TOLERANCES, compare
from workers.nn.predict import engine as asking
from workers.nn.predict import sensible_batch
from workers.nn.quality import Answers, answers, quality
from workers.nn.requests import Array, Plan
from workers.nn.settle import settle
from workers.passes import Outcome
from workers.passes._built import built
from workers.passes._int8 import Int8
from workers.passes._refit import Refittable
from workers.passes._refit import notes as of_refit
from workers.passes._source import Source, open_source
from workers.passes._timing import timing_cache

SEED = 0
ON_GPU = ("tensorrt", "tensorrt_rtx")
# Drawn inputs on which a build looks at ranges, beside rows of the data set.
_DRAWN = 4


def run(spec: ConvertSpec, ctx: Context) -> Outcome:
    """Raises Unavailable for a target that is not here, Unprocessable for a graph that it refuses, ParityError."""
    ctx.progress(0, None, phase="loading")
    version, folder = ctx.source()
    runtime = _runtime(spec, version)
    data = ctx.dataset().fit_to(version.signature) if ctx.job.dataset else None
    rows = _rows(data, ctx.split)
    source = open_source(version, folder, ctx, spec.shapes, _preferred(rows, version), SEED)
    shapes = source.plan.shapes if _has_open_sizes(version) else {}
    max_batch = spec.max_batch if version.signature.batched else 1
    refittable = Refittable(ctx, version.name, spec.target) if spec.refit else None
    asked = BuildOptions(
        spec.precision, max_batch, shapes, samples=_samples(source.plan, rows, version),
        buckets=tuple(spec.buckets or ()), level=spec.optimization_level, workspace_bytes=spec.workspace_bytes,
        sparse=spec.sparse, timing_cache=timing_cache(ctx, spec.target), refit=spec.refit, refittable=refittable,
    )  # fmt: skip
    tolerance = spec.tolerance or _tolerance(spec.precision, version)
    try:
        made = _made(runtime, version, source, asked, rows, tolerance, ctx)
    except ParityError as error:
        taken = refittable.told(ctx.scratch / "version")["refitted_from"] if refittable else None
        if taken is None:
            raise
        ctx.log(f"{error.detail}, with the plan of {taken} and other weights: the engine is built instead", "warning")
        made = _made(runtime, version, source, replace(asked, refittable=None), rows, tolerance, ctx)
    engine, parity, built_for, notes = made
    engine_folder = ctx.scratch / "version"
    try:
        found = _answers(engine, version, data, max_batch, ctx)
        measured = quality(found, data.ref, ctx.split) if data and found else None
        int8 = Int8.of(spec, version, engine, engine_folder, data, found, ctx) if spec.precision == "int8" else None
        timed = _latency(engine, version, source.plan, spec.target, max_batch, ctx) if ctx.times else ()
    finally:
        engine.close()
    metrics = Metrics(quality=measured, latency=timed, parity=parity, layer_sparsity=version.metrics.layer_sparsity)
    draft = _draft(spec, version, source, data, built_for, max_batch, metrics, ctx)
    told = refittable.told(engine_folder) if refittable else {}
    draft["details"] |= told
    notes = [*notes, *of_refit(told)]
    build = built(engine_folder)
    notes += build["build"].pop("notes") if build else []
    report = _report(spec, version, source, parity, measured, timed, notes) | build | told
    if int8 is not None:
        int8.add_to(draft, report)
    return Outcome(engine_folder, draft, report)


class _Made(NamedTuple):
    """Notes: for the report."""

    engine: Engine
    parity: Parity
    built_for: dict[str, Any]
    notes: list[str]


def _made(
    runtime: Runtime,
    version: Version,
    source: Source,
    asked: BuildOptions,
    rows: list[Array],
    tolerance: float,
    ctx: Context,
) -> _Made:
    """An engine that answers as the source does, in scratch/version. Raises ParityError, and what a build raises."""
    built_for, notes = _build(runtime, source, asked, ctx)
    options = LoadOptions(threads=ctx.threads, precision=asked.precision, max_batch=asked.max_batch)
    engine = runtime.load(ctx.scratch / "version", version.signature, options)
    try:
        ctx.progress(0, None, phase="comparing with the source")
        signature, most = version.signature, asked.max_batch
        parity = compare(engine, signature, source.answer, source.plan, rows, most, tolerance, SEED)
    except BaseException:
        engine.close()
        raise
    return _Made(engine, parity, built_for, notes)


def _tolerance(precision: str, version: Version) -> float:
    """What is usual for the precision, or for the narrowest output: its last digit alone may be more than 1e-4."""
    widths = {"float16": "fp16", "bfloat16": "bf16"}
    return max(TOLERANCES[p] for p in (precision, *(widths.get(t.dtype, "fp32") for t in version.signature.outputs)))


def _runtime(spec: ConvertSpec, version: Version) -> Runtime:
    check_int8(version.ref, version.parent, version.details.get("quantized"), spec.precision, spec.target)
    runtime = runtimes.get(spec.target)
    found = runtime.available()
    if not found.ok:
        raise Unavailable(
            f"this worker cannot build {spec.target} engines: {found.reason}",
            code="runtime_unavailable",
            hint="GET /v1/jobs/kinds lists the targets that this installation can build",
            retryable=False,
        )
    if spec.precision not in found.precisions:
        raise Unprocessable(
            f"{spec.target} on this worker has no precision {spec.precision}: it has {', '.join(found.precisions)}",
            code="unsupported_precision",
            hint=f"choose {' or '.join(found.precisions)}",
        )
    return runtime


def _build(runtime: Runtime, source: Source, options: BuildOptions, ctx: Context) -> tuple[dict[str, Any], list[str]]:
    """Builds into scratch/version; where the graph is refused for ranks that depend on values, without those."""

    def progress(share: float, phase: str) -> None:
        ctx.progress(share, 1, phase=phase)

    try:
        return runtime.build(source.onnx, ctx.folder("version"), options, progress), []
    except Unprocessable:
        settled = ctx.scratch / "settled.onnx"
        if not (count := settle(source.onnx, settled)):
            raise
    note = (
        f"{count} conditional squeezes were taken for plain ones, which the runtime needs: "
        "inputs for which they would not squeeze are refused."
    )
    return runtime.build(settled, ctx.folder("version"), options, progress), [note]


def _samples(plan: Plan, rows: list[Array], version: Version) -> list[dict[str, Array]]:
    """Requests of one row each: those of the data where the model takes nothing else, and drawn ones."""
    names = [t.name for t in version.signature.inputs]
    seen = [{names[0]: row} for row in rows] if len(names) == 1 else []
    rng = np.random.default_rng(SEED)
    return [*seen, *(plan.draw(rng) for _ in range(_DRAWN))]


def _rows(data: Data | None, split: Literal["val", "test"]) -> list[Array]:
    """Rows of a split, each with its batch axis, in the dtype of the model's input."""
    if data is None:
        return []
    some = data.split(split).sample(INPUTS, SEED)
    x = np.concatenate([x.numpy() for x, _ in some.batches(INPUTS)])
    return [np.ascontiguousarray(x[i : i + 1]) for i in range(len(x))]


def _preferred(rows: list[Array], version: Version) -> dict[str, tuple[int, ...]]:
    return {version.signature.inputs[0].name: rows[0].shape} if rows else {}


def _has_open_sizes(version: Version) -> bool:
    """Whether a size other than the batch is dynamic."""
    inputs = version.signature.inputs
    return any(n == -1 and not (a == 0 and version.signature.batched) for t in inputs for a, n in enumerate(t.shape))


def _answers(engine: Engine, version: Version, data: Data | None, max_batch: int, ctx: Context) -> Answers | None:
    """The engine's own answers, to the whole of the split that counts here."""
    if data is None:
        return None
    ctx.progress(0, None, phase="measuring accuracy")
    rows = data.split(ctx.split)
    batch = sensible_batch(rows.x.shape[1:], max_batch)
    return answers(asking(engine, version.signature, max_batch), rows, batch)


def _latency(
    engine: Engine, version: Version, plan: Plan, target: str, max_batch: int, ctx: Context
) -> tuple[Latency, ...]:
    ctx.progress(0, None, phase="measuring latency")
    device = "cuda" if target in ON_GPU else "cpu"
    found = []
    for batch in dict.fromkeys((1, max_batch)):
        request = plan.draw(np.random.default_rng(SEED), batch)
        found.append(
            latency(partial(engine.infer, request), runtime=target, batch=batch, threads=ctx.threads, device=device)
        )
    return tuple(found)


def _draft(
    spec: ConvertSpec,
    version: Version,
    source: Source,
    data: Data | None,
    built_for: dict[str, Any],
    max_batch: int,
    metrics: Metrics,
    ctx: Context,
) -> dict[str, Any]:
    record = data.record if data else None
    return {
        "format": spec.target,
        "signature": version.signature,
        "parameters": version.parameters,
        "macs": version.macs if version.macs is not None else _macs(source.onnx, source.plan),
        "sparsity": version.sparsity,
        "metrics": metrics,
        "built_for": built_for,
        "task": version.task or (data.task if data else None),
        "labels": version.labels or (record.labels if record else None),
        "preprocess": version.preprocess or (record.preprocess if record else None),
        "trainable": False,
        "details": {
            "precision": spec.precision,
            "max_batch": max_batch,
            "target": spec.target,
            "opset": source.opset,
            "threads": ctx.threads,
            "source": version.format,
            "shapes": {name: list(shape) for name, shape in source.plan.shapes.items()},
        }
        | {name: asked for name in TENSORRT_OPTIONS if (asked := getattr(spec, name)) is not None},
    }


def _macs(path: Path, plan: Plan) -> int | None:
    return onnx_macs(path, plan.shapes)


def _report(
    spec: ConvertSpec,
    version: Version,
    source: Source,
    parity: Parity,
    measured: Quality | None,
    timed: tuple[Latency, ...],
    notes: list[str],
) -> dict[str, Any]:
    before = version.metrics.quality
    eager = {t.batch: t.p50_ms for t in version.metrics.latency if t.runtime == "torch"}
    notes = [
        *notes,
        f"{spec.precision}: |engine - source| ÷ max(1, max |source|) stayed within {parity.max_rel_diff:.2g} over "
        f"{parity.n} inputs; {parity.tolerance:g} is tolerated.",
    ]
    speed = {str(t.batch): round(eager[t.batch] / t.p50_ms, 2) for t in timed if t.batch in eager and t.p50_ms}
    notes += [f"At batch {b} the engine is slower than torch eager: {s:g}×." for b, s in speed.items() if s < 1]
    if not version.signature.batched:
        notes.append("The model is not batched: it answers one request at a time.")
    return {
        "target": spec.target,
        "precision": spec.precision,
        "opset": source.opset,
        "parity": parity.model_dump(mode="json"),
        "quality": measured.model_dump(mode="json") if measured else None,
        "source_quality": before.model_dump(mode="json") if before else None,
        "latency": [t.model_dump(mode="json") for t in timed],
        "speedup_over_torch_eager": speed,
        "shapes": {name: list(shape) for name, shape in source.plan.shapes.items()},
        "notes": notes,
    }
