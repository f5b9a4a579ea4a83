"""Before it is queued: quantize."""

from __future__ import annotations

from app.domain import quantizable
from app.domain.records import Dataset, Version
from app.domain.specs import QuantizeSpec
from app.storage.catalog import Catalog


def check(spec: QuantizeSpec, version: Version | None, dataset: Dataset | None, catalog: Catalog) -> list[str]:
    """Warnings. Raises Conflict for what cannot be quantized (again) or trained, Unprocessable for several inputs."""
    if version is None:
        return []
    quantizable.check(spec, version)
    return _about(spec, dataset) if dataset is not None else []


def _about(spec: QuantizeSpec, dataset: Dataset) -> list[str]:
    found = []
    rows, judged = dataset.splits["train"].rows, dataset.splits["val"].rows
    if rows < spec.calibration_samples:
        found.append(
            f"{dataset.ref} has {rows} rows to train with: all of them calibrate, not {spec.calibration_samples}"
        )
    if spec.max_accuracy_drop is not None and dataset.classes is not None and judged:
        one = 1 / judged
        if 0 < spec.max_accuracy_drop < one:
            found.append(
                f"one of the {judged} validation rows of {dataset.ref} is {one:.2%}: within max_accuracy_drop "
                f"{spec.max_accuracy_drop:g} not even one more may be wrong"
            )
    return found
