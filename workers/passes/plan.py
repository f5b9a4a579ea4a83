"""plan: compiles the graph of an engine once more, for the kind of GPU that this worker has, and keeps what comes out.

Not a version: a replica on such a GPU loads it in the place of the version's own plan. See app/serving/plans.py.
"""

from __future__ import annotations

from app import runtimes
from app.domain.specs import PlanSpec
from app.errors import Conflict
from app.storage.registry import fetch_files
from workers.context import Context
from workers.passes import Outcome
from workers.plans import plan_for


def run(spec: PlanSpec, ctx: Context) -> Outcome:
    """Raises Conflict on another kind of GPU, ParityError, and what a build raises."""
    version = ctx.version()
    ties = runtimes.ties(version.format)
    if ties is None or ties != spec.ties:
        raise Conflict(
            f"this worker builds for {ties or 'no GPU'}, and the plan is wanted for {spec.ties}",
            code="plan_of_another_gpu",
            hint="a worker on a machine with that GPU takes it from its queue",
            retryable=True,
        )
    folder = fetch_files(ctx.artifacts, version.folder, version.files, ctx.folder("version"))
    plan, parity, is_new = plan_for(version, folder, ties, ctx)
    report = {
        "plan": plan.key,
        "built_for": plan.built_for,
        "bytes": plan.bytes,
        "parity": parity.model_dump(mode="json") if parity else None,
    }
    return Outcome(None, {}, report, cache_hit=not is_new)
