"""plan: compiles the graph of an engine once more, for the kind of GPU that this worker has, and keeps what comes out.

Not a version: a replica on such a GPU loads it in the place of the version's own plan. See app/serving/plans.py.
"""

from __future__ import annotations

from pathlib import Path

from app import runtimes
from app.domain.plans import KeptPlan, key_of
from app.domain.records import Parity, Version, now
from app.domain.specs import PlanSpec
from app.errors import Conflict
from app.runtimes import BuildOptions, LoadOptions
from app.storage.plans import files_of, publish_plan, read_plan
from app.storage.registry import put_files
from workers.context import Context
from workers.nn.parity import TOLERANCES, compare
from workers.passes import Outcome
from workers.passes._source import open_source

SEED = 0


def run(spec: PlanSpec, ctx: Context) -> Outcome:
    """Raises Conflict on another kind of GPU, ParityError, and what a build raises."""
    version = ctx.version()
    ties = runtimes.ties(version.format)
    if ties != spec.ties:
        raise Conflict(
            f"this worker builds for {ties or 'no GPU'}, and the plan is wanted for {spec.ties}",
            code="plan_of_another_gpu",
            hint="a worker on a machine with that GPU takes it from its queue",
            retryable=True,
        )
    source = runtimes.source_of(version.format)
    key = key_of(version, source, ties)
    if (kept := read_plan(ctx.artifacts, key)) is not None:
        return Outcome(None, {}, {"plan": key, "built_for": kept.built_for}, cache_hit=True)
    _, folder = ctx.source()
    made = ctx.folder("plan")
    options = _options(version)
    runtime = runtimes.get(version.format)

    def progress(share: float, phase: str) -> None:
        ctx.progress(share, 1, phase=phase)

    built_for = runtime.build(folder / source, made, options, progress)
    parity = _parity(version, folder / source, made, options, ctx)
    if Path(source).suffix != runtime.SUFFIX:
        (made / source).unlink(missing_ok=True)  # the version has it
    place = files_of(key, ctx.job.id, ctx.job.attempt)
    files, size = put_files(ctx.artifacts, made, place)
    plan = KeptPlan(
        key=key,
        source=version.files[source],
        built_for=built_for,
        folder=place,
        files=files,
        bytes=size,
        job=ctx.job.id,
        created_at=now(),
    )
    publish_plan(ctx.artifacts, plan)
    report = {"plan": key, "built_for": built_for, "bytes": size}
    return Outcome(None, {}, report | ({"parity": parity.model_dump(mode="json")} if parity else {}))


def _options(version: Version) -> BuildOptions:
    """Those that its own plan was built with."""
    given = version.details
    return BuildOptions(
        precision=str(given.get("precision", "fp32")),
        max_batch=int(given.get("max_batch", 1)),
        shapes={name: tuple(shape) for name, shape in (given.get("shapes") or {}).items()},
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
