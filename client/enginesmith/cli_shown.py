"""What jobs have found, for people: dry runs, verdicts, tables of candidates, and the command that comes next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .cli_state import State, size
from .progress import figure
from .records import Job, Record

BEST = 12  # lines of a table


def shown(told: State, job: Job) -> None:
    """The version that a job made; of a dry run what could be done."""
    report = _report(job)
    if report.get("dry_run"):
        dry_run(told, report)
    else:
        told.say(str((job.result or Record()).get("model") or job.status))
        if (job.result or Record()).get("verdict"):
            told.err.print(f"verdict: {(job.result or Record())['verdict']}", markup=False, highlight=False)
        _notes(told, report)


def dry_run(told: State, report: Mapping[str, Any]) -> None:
    """Layers with what can be done to each, then the sums."""
    layers = report.get("layers")
    if isinstance(layers, Mapping) and layers:
        records = [v if isinstance(v, Mapping) else {"what": v} for v in layers.values()]
        columns = list(dict.fromkeys(str(name) for record in records for name in record))[:8]
        rows = [[name, *(_cell(r.get(c)) for c in columns)] for name, r in zip(layers, records, strict=True)]
        told.table(["layer", *(c.replace("_", " ") for c in columns)], rows)
    for name in ("parameters", "macs", "bytes"):
        pair = report.get(name)
        if isinstance(pair, Mapping) and pair.get("before") is not None and pair.get("after") is not None:
            told.say(f"{name}: {_grouped(pair['before'])} → {_grouped(pair['after'])}{_ratio(pair)}")
    if report.get("estimate_s") is not None:
        told.say(f"it would take about {_seconds(float(report['estimate_s']))}")
    for name in ("race", "designs"):
        if report.get(name):
            told.say(f"{name}: {', '.join(report[name]) if isinstance(report[name], Mapping) else report[name]}")
    _notes(told, report)
    told.say("a dry run: nothing was changed")


def evaluated(told: State, job: Job) -> None:
    """Accuracy and latency, and with a baseline the verdict."""
    report = _report(job)
    rows = [
        [report.get(ref), _quality(report.get(quality)), _latency(report.get(times))]
        for ref, quality, times in (
            ("model", "quality", "latency"), ("baseline", "baseline_quality", "baseline_latency"),
        )
        if report.get(ref)
    ]  # fmt: skip
    if not rows:
        told.say(str((job.result or Record()).get("model") or job.status))
        return
    told.table(["version", "quality", "median ms"], rows)
    _speedup(told, report)
    _verdict(told, job)
    _notes(told, report)


def optimized(told: State, job: Job) -> None:
    """The verdict, everything that was tried, and how to deploy the answer."""
    report = _report(job)
    if report.get("dry_run"):
        dry_run(told, report)
        return
    if isinstance(report.get("table"), list):
        table(told, report["table"])
    front = report.get("front")
    if isinstance(front, list) and front:
        told.say("")
        rows = [
            [f.get("model"), f.get("design") or f.get("name"), _quality(f.get("quality")), _times(f.get("speedup")),
             size(f.get("bytes")), f.get("verdict")]
            for f in front
        ]  # fmt: skip
        told.table(["version", "what it is", "quality (test)", "speed-up", "size", "verdict"], rows)
    told.say("")
    _verdict(told, job)
    _notes(told, report, but=(str(verdict_of(job).get("told")),))
    model, verdict = (job.result or Record()).get("model"), (job.result or Record()).get("verdict")
    if model:
        told.say(str(model))
        force = "" if verdict in (None, "accepted") else " --force"
        settings = (report.get("settings") or {}).get("recommended") or {}
        options = "".join(f" --{name.replace('_', '-')} {value}" for name, value in settings.items())
        told.say(f"next: enginesmith deploy {str(model).partition('@')[0]} {model}{options}{force}")


def searched(told: State, job: Job) -> None:
    """The trials, the best of them, and what mattered."""
    report = _report(job)
    trials = report.get("cv_results") or report.get("history")
    if isinstance(trials, list) and trials:
        table(told, trials)
        told.say("")
    best = report.get("best")
    params = report.get("best_params") or (best.get("params") if isinstance(best, Mapping) else None)
    if isinstance(params, Mapping):
        told.say(f"best: {_cell(params)}")
    if report.get("best_score") is not None:
        told.say(f"score: {_cell(report['best_score'])}")
    elif isinstance(best, Mapping) and isinstance(best.get("values"), Mapping):
        told.say(f"values: {_cell(best['values'])}")
    if isinstance(report.get("quality"), Mapping):
        told.say(f"on the test split: {_quality(report['quality'])}")
    importances = report.get("importances")
    for metric, found in importances.items() if isinstance(importances, Mapping) else ():
        if isinstance(found, Mapping) and found:
            ranked = sorted(found.items(), key=lambda item: -_weight(item[1]))
            told.say(f"what mattered for {metric}: " + "  ".join(f"{k} {_weight(v):.0%}" for k, v in ranked[:BEST]))
    _notes(told, report)
    if (job.result or Record()).get("model"):
        told.say(str((job.result or Record()).get("model")))


def table(told: State, rows: Sequence[Mapping[str, Any]]) -> None:
    """Records as lines, without the columns that say nothing."""
    shown_rows = rows[: 4 * BEST]
    columns = [
        c for c in dict.fromkeys(str(name) for row in shown_rows for name in row)
        if c not in ("job", "seconds") and any(row.get(c) not in (None, "", [], {}, False) for row in shown_rows)
    ][:12]  # fmt: skip
    cells = [[_sized(c, row.get(c)) for c in columns] for row in shown_rows]
    told.table([c.replace("_", " ") for c in columns], cells)
    if len(rows) > len(shown_rows):
        told.say(f"… and {len(rows) - len(shown_rows)} more")


def brought(job: Job) -> str | None:
    """What a job has found, in one cell: a version, or a trial's values."""
    result = job.get("result") or {}
    values = (result.get("report") or {}).get("values")
    if job.get("kind") == "trial" and isinstance(values, Mapping):
        return "  ".join(f"{k} {figure(v)}" for k, v in list(values.items())[:3] if v is not None)
    parts = [str(result[k]) for k in ("model", "verdict") if result.get(k)]
    return " · ".join(parts) or None


def verdict_of(job: Job) -> Mapping[str, Any]:
    """The fields of a verdict, beside the others or together under `verdict`."""
    report = _report(job)
    nested = report.get("verdict")
    return {**report, **nested} if isinstance(nested, Mapping) else report


def _verdict(told: State, job: Job) -> None:
    found = verdict_of(job)
    if found.get("told"):
        told.say(str(found["told"]))
        return
    word = (job.result or Record()).get("verdict") or found.get("verdict")
    difference = found.get("difference")
    if isinstance(difference, Mapping) and difference.get("difference") is not None:
        in_points = difference.get("name", "accuracy") == "accuracy"
        scale, unit = (100, " points") if in_points else (1, "")
        low, high = (scale * float(difference[k]) for k in ("low", "high"))
        told.say(f"difference: {scale * float(difference['difference']):+.2f}{unit} [{low:+.2f}, {high:+.2f}]")
    if word:
        told.say(f"verdict: {word}")


def _speedup(told: State, report: Mapping[str, Any]) -> None:
    found = report.get("speedup")
    if isinstance(found, Mapping) and found:
        told.say("speed-up: " + "  ".join(f"{_times(v)} at batch {k}" for k, v in found.items()))


def _notes(told: State, report: Mapping[str, Any], but: tuple[str, ...] = ()) -> None:
    notes = report.get("notes")
    for note in notes if isinstance(notes, list) else ():
        if str(note) not in but:
            told.err.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _report(job: Job) -> Mapping[str, Any]:
    return (job.get("result") or {}).get("report") or {}


def _quality(given: Any) -> str:
    if not isinstance(given, Mapping) or given.get("value") is None:
        return ""
    span = f" [{given['low']:.4f}, {given['high']:.4f}]" if given.get("low") is not None else ""
    return f"{given.get('name', '')} {given['value']:.4f}{span}".strip()


def _latency(given: Any) -> str:
    rows = given if isinstance(given, list) else []
    return "  ".join(f"{t['p50_ms']:.3g} at batch {t['batch']}" for t in rows if t.get("p50_ms") is not None)


def _times(given: Any) -> str:
    if isinstance(given, Mapping):  # a ratio with its spread, or one per batch
        if given.get("ratio") is not None:
            return f"{float(given['ratio']):.2f}×"
        return "  ".join(f"{_times(v)} at {k}" for k, v in given.items())
    return f"{given:.2f}×" if isinstance(given, int | float) else ""


def _sized(column: str, value: Any) -> str:
    return size(value) if column == "bytes" and isinstance(value, int | float) else _cell(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, int):
        return _grouped(value)
    if isinstance(value, float) and abs(value) >= 1000:
        return f"{value:,.0f}"
    if isinstance(value, Mapping):
        return " ".join(f"{k}={_cell(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(_cell(v) for v in value)
    return figure(value)


def _grouped(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else figure(value)


def _ratio(pair: Mapping[str, Any]) -> str:
    before, after = pair["before"], pair["after"]
    return f" ({after / before - 1:+.0%})" if before else ""


def _weight(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _seconds(value: float) -> str:
    if value < 1:
        return "a second, or less"
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
