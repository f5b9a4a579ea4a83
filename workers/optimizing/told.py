"""The report of an optimize job: the verdict, the table of everything that was tried, and the front, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.domain.records import Job, Version
from workers.nn.verdict import fewest_rows, reported
from workers.optimizing import anatomy, verdicts
from workers.optimizing.race import Race
from workers.optimizing.verdicts import Choice


def told_so_far(race: Race) -> dict[str, Any]:
    """While it runs: what was tried, and the best of it on the validation split."""
    return {"objective": race.spec.objective, "batch": race.batch, "table": [_row(race, name) for name in race.trials]}


def told(
    race: Race, choice: Choice, judged: Mapping[str, Any], best: str, versions: Mapping[str, Version], tried: Job
) -> dict[str, Any]:
    """versions: what was published, by the name of the candidate. tried: the trial of the settings, which has ended."""
    rows, won = judged["candidates"], judged["candidates"][best]
    settings = tried.result.report["settings"] if tried.status == "succeeded" and tried.result else None
    front = verdicts.front_of(race, judged, best)
    shown = {
        name: {"name": name, "design": race.design_told(name), "model": version.ref, **_judged(rows[name])}
        for name, version in versions.items()
    }
    spec = race.spec
    return {
        "objective": spec.objective,
        "batch": race.batch,
        "targets": spec.targets,
        "max_accuracy_drop": spec.max_accuracy_drop,
        "confidence": spec.confidence,
        "winner": {"name": best, "design": race.design_told(best), "model": versions[best].ref, **_judged(won)},
        "verdict": reported(won, won.get("against"), "test") | {"differences": won.get("differences")},
        "baselines": {name: _judged(row) for name, row in judged["baselines"].items()},
        "better_baseline": judged["better_baseline"],
        "front": [shown[name] for name in shown if name in front],
        "beside": [shown[name] for name in shown if name not in front],
        "sequence": list(choice.order),
        "table": [_row(race, name) for name in race.trials],
        "recipe": versions[best].details.get("recipe"),
        "layers": anatomy.layers(_links(race, best), versions[best]),
        "training": {n: rows for n in _trained(race, best) if (rows := anatomy.training(_links(race, n)))},
        "splits": {"chosen_on": "val", "judged_on": "test"},
        "floor_ms": judged.get("floor_ms"),
        "settings": settings,
        "notes": [*_notes(race, choice, judged, best), *([settings["told"]] if settings else [])],
        "figures": [_pareto(race, judged, best), *(_few(f, race, judged, best) for f in judged.get("figures", []))],
    }


def _links(race: Race, name: str) -> list[dict[str, Any]]:
    """What the chain's links have said."""
    return list((race.report(name) or {}).get("links") or [])


def _trained(race: Race, best: str) -> list[str]:
    return list(dict.fromkeys(name for name in (best, race.tuned_base) if name))


def _few(figure: Mapping[str, Any], race: Race, judged: Mapping[str, Any], best: str) -> dict[str, Any]:
    """A figure of the judge with the winner, the plain engine, the better baseline and the floor: more hide each other.
    Their names are in words."""
    shown = {race.base, str(judged.get("better_baseline")), best}
    told = [
        {**s, "name": race.design_told(s["name"]) if s["name"] in race.trials else "an engine that does nothing"}
        for s in figure["series"]
        if s["name"] in shown or s["name"] not in race.trials
    ]
    return {**figure, "series": told, "note": "The last bin holds all slower calls."}


def _row(race: Race, name: str) -> dict[str, Any]:
    """One line of the table: figures of the validation split."""
    job, report = race.trials[name], race.report(name) or {}
    values, speed = report.get("values", {}), report.get("speed") or {}
    return {
        "name": name,
        "design": race.design_told(name),
        "job": job.id,
        "status": job.status,
        "quality": values.get("quality"),
        "gain": race.gain(name),
        "speedup": values.get("speedup"),
        "speedup_low": speed.get("speedup_low"),
        "speedup_high": speed.get("speedup_high"),
        "latency_ms": values.get("latency_ms"),
        "parameters": values.get("parameters"),
        "macs": values.get("macs"),
        "bytes": values.get("bytes"),
        "cache_hit": bool(report.get("cache_hit")),
        "seconds": report.get("seconds"),
        "why_not": report.get("skipped") or (job.error or {}).get("detail"),
    }


def _judged(row: Mapping[str, Any]) -> dict[str, Any]:
    fields = ("quality", "speedup", "latency", "bytes", "parameters", "macs", "verdict", "difference", "samples_needed")
    return {field: row.get(field) for field in fields}


def _notes(race: Race, choice: Choice, judged: Mapping[str, Any], best: str) -> list[str]:
    won = judged["candidates"][best]
    notes = [str(won["told"])] if won.get("told") else []
    if best in race.plain and race.plain[best].precision == "fp32":
        notes.append("Nothing that was tried is faster and proven: the original, converted as it is, is the answer.")
    elif best in race.plain:
        notes.append("The original, converted as it is, wins: no training made anything better of it.")
    elif best in race.tuned:
        notes.append("The original, fine-tuned and converted as it is, wins: removing weights gained nothing proven.")
    if judged.get("better_baseline") == race.tuned_base:
        notes.append(
            "Fine-tuning alone, with the same data and budget, beats the original: the verdict is against that."
        )
    quality = won.get("quality") or {}
    rows = quality.get("n") if quality.get("name") == "accuracy" else None
    fewest = fewest_rows(race.spec.max_accuracy_drop, race.spec.confidence)
    if rows and (fewest is None or rows < fewest):
        asked = f"it takes {fewest}" if fewest else "no number is enough"
        notes.append(
            f"The test split has {rows} rows; to accept a version that never disagrees with its baseline {asked}."
        )
    if not race.tuned:
        notes.append("The model cannot be trained here: only precisions and quantization were raced.")
    for at in won.get("latency") or ():
        floor = (judged.get("floor_ms") or {}).get(str(at["batch"]))
        # It was measured in the runtime of the plain engine: of another it says nothing.
        if floor and at["runtime"] == race.plain[race.base].target and floor > at["p50_ms"] / 2:
            notes.append(
                f"At batch {at['batch']} an engine that does nothing takes {floor:.3f} ms here, "
                f"{floor / at['p50_ms']:.0%} of the winner's {at['p50_ms']:.3f} ms: dispatch is the floor, "
                "not the network."
            )
    skipped = sum(1 for name in race.explored if (race.report(name) or {}).get("skipped"))
    if skipped:
        notes.append(f"Given up after a quick look at their speed: {skipped} of {len(race.explored)} designs.")
    if race.is_late and len(race.explored) < race.spec.trials:
        notes.append(f"The time limit came after {len(race.explored)} of {race.spec.trials} designs.")
    return notes


def _pareto(race: Race, judged: Mapping[str, Any], best: str) -> dict[str, Any]:
    """Every trial with a latency by its figure on val; the judged ones by that on test, with intervals."""
    size = race.spec.objective == "size"
    tried = [row for name in race.trials if (row := _row(race, name))["quality"] is not None]
    across = "bytes" if size else "latency_ms"
    tried = [row for row in tried if row[across] is not None]
    series = [
        {
            "name": "tried (validation)", "x": [row[across] for row in tried], "y": [row["quality"] for row in tried],
            "labels": [row["design"] for row in tried],
        }
    ]  # fmt: skip
    measured = {name: row for name, row in judged["candidates"].items() if row.get("quality")}
    groups = {
        "judged (test)": [name for name in measured if name != best],
        "the answer (test)": [name for name in measured if name == best],
    }
    for title, names in groups.items():
        rows = [measured[name] for name in names]
        series.append(
            {
                "name": title,
                "x": [row["bytes"] if size else _at(row, race.batch) for row in rows],
                "y": [row["quality"]["value"] for row in rows],
                "low": [row["quality"]["low"] for row in rows],
                "high": [row["quality"]["high"] for row in rows],
                "labels": [race.design_told(name) for name in names],
            }
        )
    label = "bytes" if size else f"ms at batch {race.batch}"
    return {
        "title": "Pareto front: accuracy against " + ("size" if size else "latency"), "kind": "points",
        "x": {"label": label, "log": True}, "y": {"label": _figure(judged)}, "series": series,
        "note": "The bars are intervals of the accuracy on the test split.",
    }  # fmt: skip


def _figure(judged: Mapping[str, Any]) -> str:
    """What quality is called: accuracy, or r2."""
    return next((str(row["quality"]["name"]) for row in judged["candidates"].values() if row.get("quality")), "quality")


def _at(row: Mapping[str, Any], batch: int) -> float | None:
    found = [at["p50_ms"] for at in row["latency"] if at["batch"] == batch] or [at["p50_ms"] for at in row["latency"]]
    return float(found[0]) if found else None
