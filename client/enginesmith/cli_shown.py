"""What a job has found, for people: a version, a dry run, a comparison, a search, the answer of optimize."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import cli_tables as tables
from .cli_hints import in_commands
from .cli_made import FORCED, fetched, following, made
from .cli_state import State
from .cli_words import SPREAD, busy, cell, change, difference, latency, quality, size, speedup
from .progress import figure
from .records import Job, Record

MOST_NOTE = 300  # characters of a note beside a result; `enginesmith report` has it whole
BEST = 12  # parameters whose importance is told


def shown(told: State, job: Job) -> None:
    """What a job that succeeded has found, by its kind."""
    report = report_of(job)
    model = (job.result or Record()).get("model")
    if report.get("dry_run"):
        tables.dry_run(told, report)
        _notes(told, job)
        told.say("a dry run: nothing was changed")
    elif job.kind == "optimize":
        optimized(told, job)
    elif job.kind == "search":
        searched(told, job)
    elif job.kind == "evaluate":
        evaluated(told, job)
    elif model and model != job.get("model"):
        version = made(told, job)
        tables.touched(told.tell, report)
        tables.sensitivity(told, report, beside=True)
        _notes(told, job)
        following(told, job, version)
    else:
        told.say(str(brought(job) or job.status))
        _notes(told, job)


def evaluated(told: State, job: Job) -> None:
    """Accuracy and latency, and with a baseline the verdict."""
    report = report_of(job)
    both = (("model", "quality", "latency"), ("baseline", "baseline_quality", "baseline_latency"))
    rows = [[report[ref], quality(report.get(q)), latency(report.get(t))] for ref, q, t in both if report.get(ref)]
    if not rows:
        told.say(str((job.result or Record()).get("model") or job.status))
        return
    told.table(["version", "quality", "median ms"], rows)
    if report.get("baseline"):
        ours, theirs = (fetched(told, report[which]) or Record() for which in ("model", "baseline"))
        for title, line in (
            ("parameters", change(theirs.get("parameters"), ours.get("parameters"))),
            ("size", change(theirs.get("bytes"), ours.get("bytes"), size)),
        ):
            if line:
                told.say(f"{title}: {line}")
    if isinstance(report.get("speedup"), Mapping) and report["speedup"]:
        spread = report.get("speedup_spread")
        told.say(f"speed-up: {speedup(report['speedup'], spread)}" + (f"   ({SPREAD})" if spread else ""))
    _verdict(told, job)
    _notes(told, job, but=(str(verdict_of(job).get("told")),))
    if remark := busy(report.get("latency"), told.cores):
        told.tell(f"note: {remark}")


def optimized(told: State, job: Job) -> None:
    """The verdict, everything that was tried, and how to deploy the answer."""
    report = report_of(job)
    if isinstance(report.get("table"), list) and report["table"]:
        tables.candidates(told, report)
    if isinstance(report.get("front"), list) and report["front"]:
        told.say("")
        tables.front(told, report)
        told.say(f"speed-up over the original's own engine at batch {report.get('batch') or 1}; {SPREAD}")
    told.say("")
    _verdict(told, job)
    if against := _against(report):
        told.say(f"compared with {against}")
    _notes(told, job, but=(str(verdict_of(job).get("told")),))
    if remark := busy((report.get("winner") or {}).get("latency"), told.cores):
        told.tell(f"note: {remark}")
    model, verdict = (job.result or Record()).get("model"), (job.result or Record()).get("verdict")
    if model:
        if verdict in FORCED:
            told.say(f"it deploys only with --force, because {FORCED[verdict]}")
        told.say(str(model))
        force = " --force" if verdict in FORCED else ""
        settings = (report.get("settings") or {}).get("recommended") or {}
        options = "".join(f" --{name.replace('_', '-')} {value}" for name, value in settings.items())
        told.say(f"next: enginesmith deploy {str(model).partition('@')[0]} {model}{options}{force}")


def _against(report: Mapping[str, Any]) -> str | None:
    """The baseline of the verdict, in words."""
    name = (report.get("verdict") or {}).get("against") if isinstance(report.get("verdict"), Mapping) else None
    designs = {row.get("name"): row.get("design") for row in report.get("table") or () if isinstance(row, Mapping)}
    return f"the original, {designs[name]}" if designs.get(name) else None


def searched(told: State, job: Job) -> None:
    """The trials, the best of them, and what mattered."""
    report = report_of(job)
    trials = report.get("cv_results") or report.get("history")
    if isinstance(trials, list) and trials:
        tables.trials(told, trials)
        told.say("")
    best = report.get("best")
    params = report.get("best_params") or (best.get("params") if isinstance(best, Mapping) else None)
    if isinstance(params, Mapping):
        told.say(f"best: {cell(params)}")
    if report.get("best_score") is not None:
        told.say(f"score: {cell(report['best_score'])}")
    elif isinstance(best, Mapping) and isinstance(best.get("values"), Mapping):
        told.say(f"values: {cell(best['values'])}")
    if isinstance(report.get("quality"), Mapping):
        told.say(f"on the test split: {quality(report['quality'])}")
    importances = report.get("importances")
    for metric, weights in importances.items() if isinstance(importances, Mapping) else ():
        if isinstance(weights, Mapping) and weights:
            ranked = sorted(weights.items(), key=lambda item: -_weight(item[1]))
            told.say(f"what mattered for {metric}: " + "  ".join(f"{k} {_weight(v):.0%}" for k, v in ranked[:BEST]))
    _notes(told, job)
    if (job.result or Record()).get("model"):
        told.say(str(job.result.model if job.result else None))
        following(told, job, fetched(told, str(job.result.model if job.result else "")))


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
    report = report_of(job)
    nested = report.get("verdict")
    return {**report, **nested} if isinstance(nested, Mapping) else report


def report_of(job: Job) -> Mapping[str, Any]:
    return (job.get("result") or {}).get("report") or {}


def _verdict(told: State, job: Job) -> None:
    judged = verdict_of(job)
    if judged.get("told"):
        told.say(str(judged["told"]))
        return
    word = (job.result or Record()).get("verdict") or judged.get("verdict")
    if line := difference(judged.get("difference")):
        told.say(f"difference: {line}")
    if word:
        told.say(f"verdict: {word}")


def _notes(told: State, job: Job, but: tuple[str, ...] = ()) -> None:
    notes = report_of(job).get("notes")
    for note in notes if isinstance(notes, list) else ():
        if str(note) not in but:
            text = in_commands(str(note))
            if len(text) > MOST_NOTE and told.aside is told.err:
                text = f"{text[:MOST_NOTE]}… (whole: enginesmith report {job.id})"
            told.tell(f"note: {text}")
    if job.get("cache_hit"):
        told.tell("note: nothing was computed anew: the same had been done before (cache_hit)")


def _weight(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
