"""Before it is queued: optimize, and evaluate with a baseline."""

from __future__ import annotations

from app.domain.records import Dataset, Version
from app.domain.specs import EvaluateSpec, OptimizeSpec
from app.storage.catalog import Catalog


def check(
    spec: OptimizeSpec | EvaluateSpec, version: Version | None, dataset: Dataset | None, catalog: Catalog
) -> list[str]:
    """Warnings. Raises Unprocessable, Conflict."""
    return []
