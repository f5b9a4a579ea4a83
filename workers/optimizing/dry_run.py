"""optimize, foretold: who would race, what could be taken out of the network, and how long it would take."""

from __future__ import annotations

from typing import Any

from app.domain.records import Version, parse_ref
from app.domain.specs import OptimizeSpec, Training
from workers.context import Context
from workers.nn.verdict import fewest_rows
from workers.optimizing.designs import training_of
from workers.optimizing.race import Race, race_of
from workers.passes import Outcome, apply

ENGINE_S, JUDGE_S = 5.0, 15.0  # to build and measure an engine; to measure those that were chosen


def dry_run(spec: OptimizeSpec, version: Version, ctx: Context) -> Outcome:
    """Loads and measures the network for a few seconds; trains and publishes nothing. Raises Unavailable."""
    race = race_of(spec, version, str(ctx.job.dataset), {})
    dataset = ctx.catalog.dataset(*parse_ref(str(ctx.job.dataset)))
    rows = dataset.splits
    report: dict[str, Any] = {
        "dry_run": True,
        "race": {name: design.told() for name, design in (race.plain | race.tuned).items()},
        "designs": 0 if race.room.is_empty else spec.trials,
        "rows": {name: split.rows for name, split in rows.items()},
        "layers": {},
        "parameters": {"before": version.parameters, "after": None},
        "macs": {"before": version.macs, "after": None},
        "notes": [],
    }
    training_s = _trained(spec, version, ctx) if version.trainable else 0.0
    trainings = (1 if race.tuned else 0) + report["designs"]
    engines = len(race.plain) + len(race.tuned) + report["designs"]
    report["training_s"] = round(training_s, 1)
    report["estimate_s"] = round((trainings * training_s + engines * ENGINE_S + JUDGE_S) / spec.parallel, 1)
    if (example := _example(spec, race)) is not None:
        told, fields = example
        looked = apply_dry(fields, version, ctx)
        for key in ("layers", "parameters", "macs"):
            report[key] = looked.get(key, report[key])
        report["notes"].append(f"Layers, and parameters and multiply-adds after: {told}, as an example.")
    fewest = fewest_rows(spec.max_accuracy_drop, spec.confidence)
    if dataset.classes is not None and (fewest is None or rows["test"].rows < fewest):
        asked = f"{fewest} are needed" if fewest else "no number is enough"
        report["notes"].append(
            f"The test split has {rows['test'].rows} rows, too few ever to accept a loss of at most "
            f"{spec.max_accuracy_drop:g}: {asked}."
        )
    if not version.trainable:
        report["notes"].append("The model cannot be trained here: only precisions and quantization would be raced.")
    return Outcome(None, {}, report)


def _example(spec: OptimizeSpec, race: Race) -> tuple[str, dict[str, Any]] | None:
    """One of the things that would be tried, in words and as fields of its spec."""
    if "prune" in race.room.compress:
        return "with half of the channels gone", {"kind": "prune", "method": "channel", "amount": 0.5}
    if "share" in race.room.compress:
        return "with convolutions in two groups", {"kind": "share", "method": "grouped_conv", "groups": 2}
    if "quantize" in spec.passes:
        return "in int8", {"kind": "quantize", "target": spec.targets[0], "dataset": spec.dataset}
    return None


def apply_dry(fields: dict[str, Any], version: Version, ctx: Context) -> dict[str, Any]:
    """The dry run of a pass on the same version."""
    from app.domain import specs

    spec = specs.parse({"model": version.ref, "dry_run": True} | fields)
    outcome = apply(spec, ctx.staged(str(fields["kind"])))
    assert isinstance(outcome, Outcome)
    return outcome.report


def _trained(spec: OptimizeSpec, version: Version, ctx: Context) -> float:
    """Seconds of one fine-tuning."""
    from workers.net import load
    from workers.nn import forecast

    ctx.progress(0, None, phase="loading")
    source, folder = ctx.source()
    net = load(folder, source)
    data = ctx.dataset().fit_to(net.signature)
    ctx.progress(0, None, phase="a few steps of training, on a copy")
    return forecast.training(net, data, Training.model_validate(training_of(spec, version.macs)), ctx)
