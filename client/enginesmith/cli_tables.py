"""Tables of what jobs have found: what could be done to each layer, how each layer minds, what was tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .cli_state import State
from .cli_words import cell, change, quality, seconds, size, times

MOST = 48  # lines of a table
COLUMNS = 8
_REMARKS = ("note", "left_alone")  # long: they share the last column
Row = Mapping[str, Any]


def dry_run(told: State, report: Row) -> None:
    """Layers with what can be done to each, then the sums."""
    layers = report.get("layers")
    if isinstance(layers, Mapping) and layers:
        _layers(told, layers)
        touched(told.say, report, "would change")
    sensitivity(told, report)
    for name, title in (("parameters", "parameters"), ("macs", "multiply-adds"), ("bytes", "bytes")):
        pair = report.get(name)
        if isinstance(pair, Mapping) and pair.get("before") is not None and pair.get("after") is not None:
            told.say(f"{title}: {change(pair['before'], pair['after'])}")
    if report.get("estimate_s") is not None:
        told.say(f"it would take about {seconds(float(report['estimate_s']))}")
    race = report.get("race")
    if isinstance(race, Mapping) and race:
        told.say("always tried: the original " + "; ".join(map(str, race.values())))
    if report.get("designs"):
        told.say(f"designs tried beside: up to {report['designs']}")


def _layers(told: State, layers: Row) -> None:
    records = [v if isinstance(v, Mapping) else {"note": v} for v in layers.values()]
    names = dict.fromkeys(str(name) for record in records for name in record)
    columns = [name for name in names if name not in _REMARKS][:COLUMNS]
    rows = [[name, *(cell(r.get(c)) for c in columns), _remark(r)] for name, r in zip(layers, records, strict=True)]
    told.table(["layer", *(c.replace("_", " ") for c in columns), ""], rows, narrow=bool(columns))


def _remark(record: Row) -> str:
    alone = f"left alone: {record['left_alone']}" if record.get("left_alone") else None
    return "; ".join(str(part) for part in (record.get("note"), alone) if part)


def touched(say: Callable[[str], None], report: Row, verb: str = "changed") -> None:
    """`1 of 7 layers changed: fc2`, where not all of them did."""
    channels, layers, alone = report.get("channels"), report.get("layers"), report.get("left_alone") or {}
    if isinstance(channels, Mapping):
        changed = [n for n, c in channels.items() if not isinstance(c, Mapping) or c.get("before") != c.get("after")]
        every = {*channels, *alone}
    elif isinstance(layers, Mapping) and layers and all(isinstance(r, Mapping) for r in layers.values()):
        changed = [n for n, r in layers.items() if n not in alone and "left_alone" not in r]
        every = {*layers, *alone}
    else:
        return
    notes = report.get("notes")  # a pass may say it by itself
    said = any("layers changed" in str(note) for note in notes) if isinstance(notes, list) else False
    if len(changed) < len(every) and not said:
        some = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        say(f"{len(changed)} of {len(every)} layers {verb}" + (f": {some}" if some else ""))


def sensitivity(told: State, report: Row, *, beside: bool = False) -> None:
    """What each layer alone would cost, untrained, by the share of it that goes."""
    found = report.get("sensitivity")
    if not isinstance(found, Mapping) or "amounts" not in found:  # quantize has another one under this name
        return
    say = told.tell if beside else told.say
    table, amounts = found.get("layers") or {}, found.get("amounts") or []
    rows = [[name, *(_share(v) for v in row.get("values") or [])] for name, row in table.items()]
    say(f"{found.get('name')} on {found.get('rows')} validation rows with that share of one layer gone, untrained "
        f"(with nothing gone: {_share(found.get('whole'))}):")  # fmt: skip
    told.table(["layer", *(f"{100 * a:g} %" for a in amounts)], rows, beside=beside)
    tied = [f"{name} with {', '.join(row['with'])}" for name, row in table.items() if row.get("with")]
    if tied:
        say(f"these go only together, and are one line each: {'; '.join(tied)}")
    if found.get("not_measured"):
        say(f"not measured for want of time: {', '.join(found['not_measured'])}")


def _share(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "–"


def candidates(told: State, report: Row) -> None:
    """Everything that an optimize job has tried: designs in words, figures of the validation split."""
    tried = [row for row in report["table"] if isinstance(row, Mapping)]
    words = _in_words(report)
    measured = [row for row in tried if row.get("quality") is not None or row.get("gain") is not None]
    rows = [
        [words(row), _share(row.get("quality")), _gain(row, report), cell(row.get("latency_ms")),
         cell(_whole(row.get("parameters"))), size(row.get("bytes"))]
        for row in measured[:MOST]
    ]  # fmt: skip
    name = next(
        (q["name"] for f in report.get("front") or () if isinstance(f, Mapping) and (q := f.get("quality"))), "quality"
    )
    told.table(["what was tried", f"{name} (val)", "speed-up", "ms", "parameters", "size"], rows, narrow=True)
    if len(measured) > MOST:
        told.say(f"… and {len(measured) - MOST} more")
    for row in [row for row in tried if row.get("quality") is None][:MOST]:
        told.say(f"not measured: {words(row)}: {row.get('why_not') or row.get('status') or 'no reason was given'}")
    if hits := sum(1 for row in tried if row.get("cache_hit")):
        told.say(f"{hits} of {len(tried)} were known from an earlier job (cache_hit)")


def front(told: State, report: Row) -> None:
    """The versions of an optimize job: figures of the test split."""
    found = [row for row in report["front"] if isinstance(row, Mapping)]
    words, batch = _in_words(report), str(report.get("batch"))
    name = next((str(row["quality"]["name"]) for row in found if row.get("quality")), "quality")
    rows = [
        [row.get("model"), words(row), quality(row.get("quality"), named=False),
         times((row.get("speedup") or {}).get(batch) or row.get("speedup")), size(row.get("bytes")), row.get("verdict")]
        for row in found
    ]  # fmt: skip
    told.table(["version", "what it is", f"{name} (test)", "speed-up", "size", "verdict"], rows, narrow=True)


def _in_words(report: Row) -> Callable[[Row], str]:
    """What says the design of a row; the target only where there are several."""
    targets = report.get("targets") or []
    ending = f" · {targets[0]}" if len(targets) == 1 else ""
    return lambda row: str(row.get("design") or row.get("name") or "").removesuffix(ending)


def _gain(row: Row, report: Row) -> str:
    ratio = row.get("speedup")
    if ratio is None:  # the engine that the others are compared with
        ratio = 1.0 if row.get("gain") == 1.0 else None
    return times({"ratio": ratio, "low": row.get("speedup_low"), "high": row.get("speedup_high")}) if ratio else ""


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def trials(told: State, rows: Sequence[Row]) -> None:
    """Records as lines, without the columns that say nothing."""
    shown = rows[:MOST]
    columns = [
        c for c in dict.fromkeys(str(name) for row in shown for name in row)
        if c not in ("job", "seconds") and any(row.get(c) not in (None, "", [], {}, False) for row in shown)
    ][:12]  # fmt: skip
    cells = [[size(row.get(c)) if c == "bytes" else cell(row.get(c)) for c in columns] for row in shown]
    told.table([c.replace("_", " ") for c in columns], cells)
    if len(rows) > len(shown):
        told.say(f"… and {len(rows) - len(shown)} more")
