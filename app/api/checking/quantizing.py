"""Before it is queued: quantize."""

from __future__ import annotations

from app.domain.records import Dataset, Version
from app.domain.specs import QuantizeSpec
from app.storage.catalog import Catalog


def check(spec: QuantizeSpec, version: Version | None, dataset: Dataset | None, catalog: Catalog) -> list[str]:
    """Warnings. Raises Unprocessable, Conflict."""
    return []
