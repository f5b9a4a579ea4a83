"""Plans for the GPU of this worker, of engines that were built on another kind: compiled once, kept for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from app import runtimes
from app.domain.plans import KeptPlan, key_of
from app.domain.records import Parity, Version, now
from app.runtimes import BuildOptions, LoadOptions
from app.storage.plans import files_of, publish_plan, read_plan
from app.storage.registry import fetch_files, put_files
from workers.context import Context
from workers.nn.parity import TOLERANCES, compare
from workers.passes._source import open_source
from workers.passes._timing import timing_cache

SEED = 0


class Made(NamedTuple):
    """parity: None where it was kept already, or nothing here can run the graph to compare with."""

    plan: KeptPlan
    parity: Parity | None = None
    is_new: bool = False


def fitting(version: Version, folder: Path, ctx: Context) -> Path:
    """A folder with an engine that can be loaded here, of a version whose own cannot: a plan for this GPU, which is
    built where there is none yet. folder: with the version's files. Raises what a build raises."""
    ties = runtimes.ties(version.format)
    assert ties is not None, "nothing that travels is misfit"
    plan = plan_for(version, folder, ties, ctx).plan
    return fetch_files(ctx.artifacts, plan.folder, plan.files, ctx.folder(f"plan-{plan.key[:16]}"))


def plan_for(version: Version, folder: Path, ties: dict[str, str], ctx: Context) -> Made:
    """The plan of a version for what `ties` says, which is what is here. folder: with the version's files. Raises
    ParityError, and what a build raises."""
    name = runtimes.source_of(version.format)
    key = key_of(version, name, ties)
    if (kept := read_plan(ctx.artifacts, key)) is not None:
        return Made(kept)
    source, made, options = folder / name, ctx.folder("plan"), _options(version)
    runtime = runtimes.get(version.format)

    def progress(share: float, phase: str) -> None:
        ctx.progress(share, 1, phase=phase)

    measured = replace(options, timing_cache=timing_cache(ctx, version.format))
    built_for = runtime.build(source, made, measured, progress)
    parity = _parity(version, source, made, options, ctx)
    if source.suffix != runtime.SUFFIX:
        (made / name).unlink(missing_ok=True)  # the version has it
    place = files_of(key, ctx.job.id, ctx.job.attempt)
    files, size = put_files(ctx.artifacts, made, place)
    plan = KeptPlan(
        key=key,
        source=version.files[name],
        built_for=built_for,
        folder=place,
        files=files,
        bytes=size,
        job=ctx.job.id,
        created_at=now(),
    )
    return Made(publish_plan(ctx.artifacts, plan), parity, is_new=True)


def _options(version: Version) -> BuildOptions:
    """Those that its own plan was built with."""
    given = version.details
    return BuildOptions(
        precision=str(given.get("precision", "fp32")),
        max_batch=int(given.get("max_batch", 1)),
        shapes={name: tuple(shape) for name, shape in (given.get("shapes") or {}).items()},
        buckets=tuple(given.get("buckets") or ()),
        level=given.get("optimization_level"),
        workspace_bytes=given.get("workspace_bytes"),
        sparse=given.get("sparse"),
    )


def _parity(version: Version, source: Path, made: Path, options: BuildOptions, ctx: Context) -> Parity | None:
    """Against the very graph that it was built from, by ONNX Runtime; what else is loaded alone."""
    runtime = runtimes.get(version.format)
    loading = LoadOptions(ctx.threads, precision=options.precision, max_batch=options.max_batch)
    engine = runtime.load(made, version.signature, loading)
    try:
        if source.suffix != ".onnx" or options.precision == "bf16":  # which ONNX Runtime has not on a processor
            return None
        ctx.progress(0, None, phase="comparing with the graph")
        asked = open_source(version.but(format="onnx"), source.parent, ctx, options.shapes, {}, SEED)
        known = version.metrics.parity
        tolerance = known.tolerance if known is not None else TOLERANCES[options.precision]
        return compare(engine, version.signature, asked.answer, asked.plan, [], options.max_batch, tolerance, SEED)
    finally:
        engine.close()
