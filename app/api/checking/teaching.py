"""Before it is queued: teachers, wherever a spec names one."""

from __future__ import annotations

from app.domain.records import Dataset, Version
from app.domain.specs import Spec
from app.storage.catalog import Catalog


def check(spec: Spec, version: Version | None, dataset: Dataset | None, catalog: Catalog) -> list[str]:
    """Warnings. Raises Unprocessable, Conflict."""
    return []
