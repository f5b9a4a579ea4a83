"""Before it is queued: prune and share."""

from __future__ import annotations

from app.domain.records import Dataset, Version
from app.domain.specs import PruneSpec, ShareSpec
from app.storage.catalog import Catalog


def check(spec: PruneSpec | ShareSpec, version: Version | None, dataset: Dataset | None, catalog: Catalog) -> list[str]:
    """Warnings. Raises Unprocessable, Conflict."""
    return []
