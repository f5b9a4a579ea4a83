"""search: tries values of hyper-parameters, each in a job of its own; the winner becomes a version."""

from __future__ import annotations

from app.domain.specs import SearchSpec
from workers.context import Context
from workers.passes import Outcome, Waits


def run(spec: SearchSpec, ctx: Context) -> Outcome | Waits:
    """One step of it. Raises Unprocessable for a space that cannot be, and where every trial failed."""
    if spec.estimator is not None:
        from workers.search import estimating

        return estimating.step(spec, ctx)
    from workers.search import chains

    return chains.step(spec, ctx)
