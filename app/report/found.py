"""The figures that a job gives without its pass drawing them: curves of training, layers, latency, the difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from app.report.naming import heading
from app.report.words import judged

Given = dict[str, Any]
_FAMILIES = ("loss", "accuracy", "r2")
_NOT_CURVES = frozenset({"epoch", "epochs", "step", "seconds", "elapsed_s", "number", "trial", "seed", "pruned"})
MOST_CURVES = 12


def figures(job: Mapping[str, Any], made: Mapping[str, Any] | None) -> list[Given]:
    """In the order in which a reader asks. made: the version that the job made, as the API tells it."""
    result = job.get("result") or {}
    report = result.get("report") or {}
    found = [*difference(report), *curves(job.get("history") or []), *trainings(report)]
    found += [*layers(report, made), *channels(report), *histograms(report, made), *latencies(report, made)]
    own = report.get("figures")
    drawn = {f.get("title") for f in own if isinstance(f, Mapping)} if isinstance(own, list) else set()
    return [figure for figure in found if figure["title"] not in drawn]


def difference(report: Mapping[str, Any]) -> list[Given]:
    """The paired difference as an interval beside zero and the bound."""
    found = judged(report)
    given = found.get("difference")
    if not isinstance(given, Mapping) or not all(_number(given.get(k)) for k in ("difference", "low", "high")):
        return []
    in_points = given.get("name", "accuracy") == "accuracy"
    scale = 100.0 if in_points else 1.0
    marks: list[Given] = [{"axis": "x", "at": 0.0, "label": "no difference"}]
    if _number(found.get("max_accuracy_drop")):
        marks.append({"axis": "x", "at": -scale * found["max_accuracy_drop"], "label": "bound"})
    values = {key: [scale * float(given[k])] for key, k in (("x", "difference"), ("low", "low"), ("high", "high"))}
    return [
        {
            "title": "Difference from the baseline",
            "kind": "intervals",
            "x": {"label": "accuracy, points" if in_points else str(given.get("name"))},
            "y": {},
            "series": [{"name": "difference", "labels": [str(found.get("model") or "this version")], **values}],
            "marks": marks,
        }
    ]


def curves(history: Sequence[Mapping[str, Any]]) -> list[Given]:
    """One figure for losses, one for accuracies, one for each other number that changes from row to row."""
    groups: dict[str, dict[str, list[float]]] = {}
    for i, row in enumerate(history):
        for name, value in row.items():
            if name in _NOT_CURVES or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            family = next((f for f in _FAMILIES if f in name), name)
            if family in groups or len(groups) < MOST_CURVES:
                line = groups.setdefault(family, {}).setdefault(name, [math.nan] * len(history))
                line[i] = float(value)
    epochs = [float(row["epoch"]) if _number(row.get("epoch")) else math.nan for row in history]
    # Where epochs begin again (several trainings in one job) they are no axis.
    rising = all(map(math.isfinite, epochs[:1])) and all(a < b for a, b in pairwise(epochs))
    x = epochs if rising else [i + 1.0 for i in range(len(history))]
    marks = _turns(history, x)
    return [
        {
            "title": f"{heading(family).capitalize()} while training",
            "kind": "lines",
            "x": {"label": "epoch" if rising else "epochs, all together"},
            "y": {"label": heading(family)},
            "series": [{"name": heading(name), "x": x, "y": y} for name, y in lines.items()],
            "marks": marks,
        }
        for family, lines in groups.items()
        if max(sum(map(math.isfinite, y)) for y in lines.values()) > 1 and (family in _FAMILIES or _varies(lines))
    ]


def trainings(report: Mapping[str, Any]) -> list[Given]:
    """Of an optimize job: how its answer and the fine-tuned baseline were trained, in one figure for each family."""
    told = report.get("training")
    if not isinstance(told, Mapping):
        return []
    won = report.get("winner")
    answer = won.get("name") if isinstance(won, Mapping) else None
    by_rows: list[tuple[str, list[Any]]] = []
    for name, rows in told.items():
        if isinstance(rows, list) and all(isinstance(row, Mapping) for row in rows):
            role = "the answer" if name == answer else "the fine-tuned baseline"
            same = next((i for i, (_, other) in enumerate(by_rows) if other == rows), None)
            if same is None:
                by_rows.append((role, rows))
            else:
                by_rows[same] = (f"{by_rows[same][0]}, {role}", rows)
    merged: dict[str, Given] = {}
    for role, rows in by_rows:
        for figure in curves(rows):
            if not figure["title"].lower().startswith(_FAMILIES):
                continue
            series = [{**s, "name": f"{role}: {s['name']}"} for s in figure["series"]]
            if (first := merged.get(figure["title"])) is not None:
                first["series"] += series
                first["marks"] += figure["marks"]
            else:
                merged[figure["title"]] = {**figure, "series": series}
    return list(merged.values())


def _varies(lines: Mapping[str, Sequence[float]]) -> bool:
    return len({v for y in lines.values() for v in y if math.isfinite(v)}) > 1


def _turns(history: Sequence[Mapping[str, Any]], x: Sequence[float]) -> list[Given]:
    """Where another phase begins."""
    found = []
    for i in range(1, len(history)):
        before, now = history[i - 1].get("phase"), history[i].get("phase")
        if now != before and isinstance(now, str):
            found.append({"axis": "x", "at": (x[i - 1] + x[i]) / 2, "label": now})
    return found


def layers(report: Mapping[str, Any], made: Mapping[str, Any] | None) -> list[Given]:
    """The share of zeros in each layer, before and after where the report says both."""
    told = report.get("layers")
    rows: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
    after = {n: v["sparsity_after"] for n, v in rows.items() if isinstance(v, Mapping) and "sparsity_after" in v}
    before = {n: v["sparsity_before"] for n, v in rows.items() if isinstance(v, Mapping) and "sparsity_before" in v}
    if not after and made is not None:
        after = (made.get("metrics") or {}).get("layer_sparsity") or {}
    if not any(_number(v) and v > 0 for v in after.values()):
        return []
    series = [{"name": "after", "x": list(after), "y": [_percent(v) for v in after.values()]}]
    if any(_number(v) and v > 0 for v in before.values()):
        series.insert(0, {"name": "before", "x": list(before), "y": [_percent(v) for v in before.values()]})
    return [_bars("Zeros in each layer", "% of its weights", series)]


def channels(report: Mapping[str, Any]) -> list[Given]:
    """Channels of each layer before and after; of an optimize job those of its answer."""
    told = report.get("channels")
    if told is None and isinstance(report.get("layers"), Mapping):
        told = {n: v.get("channels") for n, v in report["layers"].items() if isinstance(v, Mapping)}
    rows = {n: v for n, v in told.items() if _pair(v)} if isinstance(told, Mapping) else {}
    if not rows:
        return []
    series = [{"name": k, "x": list(rows), "y": [float(v[k]) for v in rows.values()]} for k in ("before", "after")]
    return [_bars("Channels of each layer", "channels", series)]


def histograms(report: Mapping[str, Any], made: Mapping[str, Any] | None) -> list[Given]:
    """Shares of the runs by milliseconds, one figure for each number of rows; the baseline beside the version."""
    ours = report.get("latency") or ((made or {}).get("metrics") or {}).get("latency") or []
    found: dict[str, Given] = {}
    for name, timed in (("this version", ours), ("the baseline", report.get("baseline_latency") or [])):
        for at in _timed(timed):
            edges, shares = _histogram(at)
            if not edges:
                continue
            batch = at.get("batch", "?")
            title = f"Latency of a run of {batch} row{'' if batch == 1 else 's'}"
            blank: Given = {
                "title": title, "kind": "histogram", "x": {"label": "ms"}, "y": {"label": "share of the runs"},
                "series": [], "note": "The slowest fiftieth of the runs is not drawn.",
            }  # fmt: skip
            found.setdefault(title, blank)["series"].append({"name": name, "x": edges, "y": shares})
    return list(found.values())


def _histogram(timed: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Edges of bins and the share of all runs in each; nothing where there is none."""
    given = timed.get("histogram")
    if not isinstance(given, Mapping) or not _number(given.get("low")) or not _number(given.get("high")):
        return [], []
    raw = given.get("counts")
    counts = [float(c) for c in raw if _number(c)] if isinstance(raw, list | tuple) else []
    runs = timed.get("runs")
    whole = float(runs) if _number(runs) and runs else sum(counts)
    if not counts or not whole:
        return [], []
    low, high = float(given["low"]), float(given["high"])
    width = (high - low) / len(counts)
    return [low + i * width for i in range(len(counts) + 1)], [c / whole for c in counts]


def latencies(report: Mapping[str, Any], made: Mapping[str, Any] | None) -> list[Given]:
    """Median, p95 and p99 per batch, of the version and of its baseline."""
    ours = report.get("latency") or ((made or {}).get("metrics") or {}).get("latency") or []
    theirs = report.get("baseline_latency") or []
    rows = [(_where(t), t) for t in _timed(ours)] + [(f"{_where(t)} baseline", t) for t in _timed(theirs)]
    if not rows:
        return []
    quantiles = [("median", "p50_ms"), ("95 %", "p95_ms"), ("99 %", "p99_ms")]
    series = [
        {"name": told, "x": [where for where, _ in rows], "y": [t.get(key) for _, t in rows]} for told, key in quantiles
    ]
    span = [t[key] for _, t in rows for _, key in quantiles if _number(t.get(key))]
    found = _bars("Latency by batch", "ms per run", series)
    found["y"]["log"] = max(span) > 20 * min(span) > 0
    return [found]


def _timed(given: Any) -> list[Mapping[str, Any]]:
    return [t for t in given if isinstance(t, Mapping) and _number(t.get("p50_ms"))] if isinstance(given, list) else []


def _where(timed: Mapping[str, Any]) -> str:
    return f"{timed.get('runtime', '')} ×{timed.get('batch', '?')}"


def _bars(title: str, label: str, series: list[Given]) -> Given:
    return {"title": title, "kind": "bars", "x": {"label": ""}, "y": {"label": label}, "series": series}


def _percent(value: Any) -> float:
    return 100.0 * value if _number(value) else math.nan


def _pair(value: Any) -> bool:
    return isinstance(value, Mapping) and _number(value.get("before")) and _number(value.get("after"))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
