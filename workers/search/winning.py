"""The winner of a search becomes a version: its files are copied from where trials are kept, the figures are new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.domain.records import Made, Version
from workers.context import Context
from workers.trials import kept


def publish(ctx: Context, key: str, chain: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> Version:
    """What a chain made. row: what the trial `judge` says of it. The same job publishes once. Raises NotFound."""
    recipe = [{**link, "dataset": ctx.job.dataset} for link in chain]
    return kept.publish_judged(
        ctx.artifacts, ctx.catalog, key, row,
        parent=str(ctx.job.model), made_by=Made(job=ctx.job.id, spec=ctx.job.spec),
        details={"recipe": recipe, "search": ctx.job.id},
    )  # fmt: skip


def publish_estimator(ctx: Context, key: str, name: str) -> Version:
    """What `estimator_winner` made, whose record is complete. Raises NotFound."""
    return kept.publish(
        ctx.artifacts, ctx.catalog, key, name=name, parent=None, made_by=Made(job=ctx.job.id, spec=ctx.job.spec)
    )
