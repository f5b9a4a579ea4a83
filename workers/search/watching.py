"""In a trial's own process: tells the study the figure of every epoch, and ends the trial when the pruner says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from workers.passes import Outcome

if TYPE_CHECKING:
    from app.domain.specs import Spec
    from workers.context import Context

Apply = Callable[..., Any]


class Watch(BaseModel):
    """What a trial's spec says under `watch`. epochs: of all links of its chain together."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    search: str
    number: int
    pruner: str
    metric: str
    epochs: int


class Pruned(Exception):
    """The trial lags behind others."""

    def __init__(self, step: int, value: float) -> None:
        super().__init__(f"pruned after epoch {step}")
        self.step, self.value = step, value


def watched(spec: Spec, ctx: Context, apply: Apply) -> Any:
    """Applies the spec of a trial under its pruner. One that is pruned succeeds, with `pruned` in its report."""
    asked = (getattr(spec, "model_extra", None) or {}).get("watch")
    if asked is None:
        return apply(spec, ctx)
    watch = Watch.model_validate(asked)
    ctx.watch = _watcher(watch, ctx)
    try:
        return apply(spec, ctx)
    except Pruned as end:
        ctx.log(f"pruned after epoch {end.step} of {watch.epochs}: others were better by then")
        values = {watch.metric: end.value}
        return Outcome(None, {}, {"pruned": True, "pruned_after": end.step, "values": values, "cache_hit": False})


def _watcher(watch: Watch, ctx: Context) -> Callable[[dict[str, Any]], None]:
    import optuna
    from optuna.storages import JournalStorage

    from app.storage.trials import study_of
    from workers.search.journal import Journal
    from workers.search.study import pruner_of

    storage = JournalStorage(Journal(ctx.catalog.redis, study_of(watch.search)))
    pruner = pruner_of(watch.pruner, watch.epochs)
    study = optuna.load_study(
        study_name=watch.search, storage=storage, sampler=optuna.samplers.RandomSampler(), pruner=pruner
    )
    id = storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name(watch.search), watch.number)

    def watcher(row: dict[str, Any]) -> None:
        value = row.get("loss") if watch.metric == "loss" else _validation(row)
        if value is None:
            return
        # Of the whole chain, and not of this attempt: what was resumed or computed before is not told again.
        epoch = int(row.get("epochs_before", 0)) + int(row["epoch"])
        if epoch not in storage.get_trial(id).intermediate_values:  # an attempt before this one may have told it
            storage.set_trial_intermediate_value(id, epoch, float(value))
        if epoch < watch.epochs and pruner.prune(study, storage.get_trial(id)):
            raise Pruned(epoch, float(value))

    return watcher


def _validation(row: dict[str, Any]) -> float | None:
    return next((v for k, v in row.items() if k.startswith("val_") and isinstance(v, (int, float))), None)
