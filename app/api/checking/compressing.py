"""Before it is queued: prune and share."""

from __future__ import annotations

from app.domain.records import Dataset, Version
from app.domain.specs import PruneSpec, ShareSpec
from app.storage.catalog import Catalog

FEW_ROWS = 200
ENERGY = ShareSpec.model_fields["energy"].default
# Fields that play a part in some methods only, and in which.
_OF_SOME: dict[str, tuple[str, ...]] = {
    "groups": ("grouped_conv",),
    "permute": ("grouped_conv",),
    "solve": ("grouped_conv", "depthwise_separable", "low_rank"),
    "ranks": ("low_rank",),
    "energy": ("low_rank",),
    "clusters": ("cluster",),
    "amount": ("l1_unstructured", "random_unstructured", "ln_structured", "channel"),
    "norm": ("ln_structured",),
    "round_to": ("channel",),
    "n": ("n_m",),
    "m": ("n_m",),
}


def check(spec: PruneSpec | ShareSpec, version: Version | None, dataset: Dataset | None, catalog: Catalog) -> list[str]:
    """Warnings of what will run, but not as one might hope. What cannot run is refused by the spec itself, and by the
    checks that all kinds share."""
    found = _idle(spec)
    if isinstance(spec, PruneSpec):
        found += _pruning(spec, dataset)
    if dataset is None and not spec.dry_run:
        found.append("without a data set nothing measures how accurate the network still is")
    if spec.dry_run and spec.finetune is not None and dataset is None:
        found.append("without a data set the dry run cannot tell how long the fine-tuning would take")
    return found


def _idle(spec: PruneSpec | ShareSpec) -> list[str]:
    """Fields that were said, and that this method does not look at. A recipe says all: defaults tell nothing."""
    defaults = type(spec).model_fields
    found = [
        f"`{field}` {getattr(spec, field)} plays no part: it is of {' and '.join(methods)}, not of {spec.method}"
        for field, methods in _OF_SOME.items()
        if field in spec.model_fields_set
        and spec.method not in methods
        and getattr(spec, field) != defaults[field].default
    ]
    if isinstance(spec, ShareSpec) and spec.method == "low_rank" and spec.ranks == "vbmf" and spec.energy != ENERGY:
        found.append(f"`energy` {spec.energy:g} plays no part: `ranks` vbmf finds the ranks by itself")
    return found


def _pruning(spec: PruneSpec, dataset: Dataset | None) -> list[str]:
    found = []
    if spec.steps > 1 and spec.schedule == "one_shot":
        found.append(f"one_shot takes all in one step: `steps` {spec.steps} plays no part")
    elif spec.steps == 1 and spec.schedule == "gradual":
        found.append("`schedule` gradual plays no part in one step: say how many with `steps`")
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
