"""Before it is queued: prune and share."""

from __future__ import annotations

from app.domain.records import Dataset, Version
from app.domain.specs import PruneSpec, ShareSpec
from app.storage.catalog import Catalog

FEW_ROWS = 200


def check(spec: PruneSpec | ShareSpec, version: Version | None, dataset: Dataset | None, catalog: Catalog) -> list[str]:
    """Warnings of what will run, but not as one might hope. What cannot run is refused by the spec itself, and by the
    checks that all kinds share."""
    found = _pruning(spec, dataset) if isinstance(spec, PruneSpec) else []
    if dataset is None and not spec.dry_run:
        found.append("without a data set nothing measures how accurate the network still is")
    if spec.dry_run and spec.finetune is not None and dataset is None:
        found.append("without a data set the dry run cannot tell how long the fine-tuning would take")
    return found


def _pruning(spec: PruneSpec, dataset: Dataset | None) -> list[str]:
    found = []
    if spec.steps > 1 and spec.schedule == "one_shot":
        found.append(f"one_shot takes all in one step: `steps` {spec.steps} plays no part")
    elif spec.steps > 1 and spec.finetune is None:
        found.append(f"{spec.steps} steps without `finetune` between them: little else than one")
    elif spec.finetune is not None and spec.steps > spec.finetune.epochs:
        found.append(
            f"{spec.steps} steps share {spec.finetune.epochs} epoch{'s' if spec.finetune.epochs > 1 else ''} of "
            f"fine-tuning: {spec.steps - spec.finetune.epochs} of them get none"
        )
    if spec.dry_run and dataset is None:
        if spec.sensitivity:
            found.append("sensitivity is measured on validation rows: without a data set there is none")
        if spec.importance == "taylor":
            found.append("without a data set the dry run puts magnitude in the place of taylor")
    if spec.sensitivity and dataset is not None and dataset.splits["val"].rows < FEW_ROWS:
        rows = dataset.splits["val"].rows
        found.append(f"sensitivity is measured on {rows} validation rows: a step of {100 / max(1, rows):.1f} points")
    if spec.method == "n_m" and (spec.n, spec.m) != (2, 4):
        found.append(f"no hardware known gains speed from {spec.n}:{spec.m}: sparse tensor cores take 2:4")
    return found
