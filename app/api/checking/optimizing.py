"""Before it is queued: optimize, and evaluate with a baseline."""

from __future__ import annotations

from math import ceil
from statistics import NormalDist

from app.api.checking.targets import check_target
from app.domain.records import Dataset, Version
from app.domain.specs import EvaluateSpec, OptimizeSpec
from app.errors import Conflict, Unprocessable
from app.storage.catalog import Catalog

UNUSUAL = 0.5


def check(
    spec: OptimizeSpec | EvaluateSpec, version: Version | None, dataset: Dataset | None, catalog: Catalog
) -> list[str]:
    """Warns of a test split that is too small ever to accept anything. Raises Conflict for a target that no live worker
    can build, and for what is quantized already."""
    if isinstance(spec, OptimizeSpec):
        workers = catalog.takers()
        for target in spec.targets:
            check_target(target, workers)
        if version is not None and version.details.get("quantized"):
            raise Conflict(
                f"{version.ref} is quantized: there is no plain engine of it to race against",
                code="already_quantized",
                hint=f"optimize {version.parent or 'the version it was made from'} instead",
            )
    warnings = []
    if isinstance(spec, OptimizeSpec) and version is not None:
        warnings += _about_rows(spec, version)
    if spec.max_accuracy_drop > UNUSUAL:
        warnings.append(
            f"`max_accuracy_drop` {spec.max_accuracy_drop:g} allows a loss of {100 * spec.max_accuracy_drop:g} points: "
            "0.01 is one point"
        )
    if dataset is None or (isinstance(spec, EvaluateSpec) and spec.baseline is None):
        return warnings
    split = dataset.splits["test"].rows
    rows = min(split, spec.samples or split) if isinstance(spec, EvaluateSpec) else split
    fewest = fewest_rows(spec.max_accuracy_drop, spec.confidence)
    if dataset.classes is not None and (fewest is None or rows < fewest):
        reach = 100 * 1 / (1 + rows / _z(spec.confidence) ** 2)
        asked = f"it takes {fewest} rows" if fewest is not None else "no number of rows is enough"
        warnings.append(
            f"The verdict cannot be `accepted`: on the {rows} rows of the test split even models that never disagree "
            f"leave ±{reach:.2f} points, and {100 * spec.max_accuracy_drop:g} are allowed; {asked}."
        )
    if isinstance(spec, OptimizeSpec) and version is not None and not version.trainable:
        warnings.append(
            f"{version.ref} cannot be trained: only precisions and quantization are raced. A version of format torch "
            "could be pruned and fine-tuned too."
        )
    return warnings


def _about_rows(spec: OptimizeSpec, version: Version) -> list[str]:
    if version.signature.batched or (spec.batch in (None, 1) and spec.objective != "throughput"):
        return []
    return [f"{version.ref} takes one row at a time: speed is measured with 1 row"]


def check_same_order(version: Version, baseline: Version) -> None:
    """Raises Unprocessable where class 0 of one is another class of the other: on one data set at most one is right."""
    if version.labels != baseline.labels and sorted(version.labels or ()) == sorted(baseline.labels or ()):
        raise Unprocessable(
            f"{version.ref} and {baseline.ref} have the same labels in another order",
            code="labels_differ",
            hint="compare versions whose outputs mean the same: one that this model came from",
            errors=[{"loc": ["baseline"], "msg": "has its labels in another order"}],
        )


def fewest_rows(max_accuracy_drop: float, confidence: float) -> int | None:
    """The rows from which on Tango's interval of two models that never disagree, ± z² ÷ (n + z²), is within the bound;
    None where no number is enough."""
    if max_accuracy_drop <= 0:
        return None
    return ceil(_z(confidence) ** 2 * (1 - max_accuracy_drop) / max_accuracy_drop)


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)
