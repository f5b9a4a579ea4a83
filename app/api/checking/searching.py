"""Before it is queued: search."""

from __future__ import annotations

from app.domain.records import Dataset, Version
from app.domain.specs import SearchSpec
from app.storage.catalog import Catalog


def check(spec: SearchSpec, version: Version | None, dataset: Dataset | None, catalog: Catalog) -> list[str]:
    """Warnings. Raises Unprocessable, Conflict."""
    return []
