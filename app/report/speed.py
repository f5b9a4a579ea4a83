"""How fast, against what, how sure that is, and what else the machine was doing while it was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from app.report import tables, words

Told = Mapping[str, Any]
# From here on the rounds of a measurement differ so much that something else must have used the machine.
UNQUIET = 1.3
FIELDS = frozenset(("speedup", "speedup_spread", "speedup_over_torch_eager", "eager_speed"))


def section(report: Told) -> str:
    """One line per number of rows: the ratio with the middle half of its rounds, both latencies, and the load."""
    rows = list(_raced(report))
    if not rows:
        return _apart(report)
    note = "Both were measured in turns, in one run: the ratio says more than the milliseconds do."
    if any(_number(row["low"]) for row in rows):
        note += " In brackets: the middle half of the rounds."
    told = [_sentence(row) for row in rows]
    lines = "".join(f"<p>{line}</p>" for line in told if line)
    shown = tables.table([_shown(row) for row in rows], caption="speed")
    return f'{lines}{shown}<p class="note">{note}</p>{_load(rows)}'


def _shown(row: Told) -> dict[str, Any]:
    return {
        "rows of a run": row["batch"],
        "times as fast": words.brief(row) or round(row["ratio"], 3),
        "ms (median)": row["ms"],
        "baseline, ms": row["baseline_ms"],
        "rounds": row["rounds"],
        "threads": row["threads"],
        "load of the machine": row["load"],
    }


def _raced(report: Told) -> Iterator[dict[str, Any]]:
    """Of an evaluate job against its baseline, or of the winner of an optimize job against the plain engine."""
    won = report.get("winner")
    if isinstance(won, Mapping):
        rivals = report.get("baselines")
        plain: Any = next(iter(rivals.values()), {}) if isinstance(rivals, Mapping) else {}
        ours, theirs = won.get("latency"), plain.get("latency") if isinstance(plain, Mapping) else None
        ratios = won.get("speedup")
    elif isinstance(eager := report.get("eager_speed"), Mapping):  # of a network that shares, in torch
        ours, theirs, ratios = None, None, {str(eager.get("batch", 1)): eager}
    else:
        ours, theirs = report.get("latency"), report.get("baseline_latency")
        ratios = report.get("speedup_spread") or report.get("speedup")
    if not isinstance(ratios, Mapping):
        return
    for batch, given in ratios.items():
        ratio = given if isinstance(given, Mapping) else {"ratio": given}
        if not _number(ratio.get("ratio")):
            continue
        mine, other = _at(ours, batch), _at(theirs, batch)
        yield {
            "batch": batch,
            "ratio": float(ratio["ratio"]),
            "low": ratio.get("low"),
            "high": ratio.get("high"),
            "rounds": ratio.get("rounds"),
            "ms": mine.get("p50_ms"),
            "baseline_ms": other.get("p50_ms"),
            "threads": mine.get("threads"),
            "load": _rounded(mine.get("load_1m")),
        }


def _sentence(row: Told) -> str:
    low, high = row["low"], row["high"]
    if not _number(low) or not _number(high):
        return ""
    rows = f"{row['batch']} row{'s' if str(row['batch']) != '1' else ''} a run"
    if low <= 1 <= high and not low == high == 1:
        return f"At {rows} it cannot be told which of the two is faster."
    if low > 0 and high / low > UNQUIET:
        return f"At {rows} the rounds differ a lot: something else used the machine. Measure again when it is quiet."
    return ""


def _load(rows: list[dict[str, Any]]) -> str:
    loads = [row["load"] for row in rows if _number(row["load"])]
    if not loads:
        return ""
    return (
        f'<p class="note">Load of the machine while it was measured: {max(loads):g} at most, averaged over a minute; '
        "the measured engine's own threads are in it.</p>"
    )


def _apart(report: Told) -> str:
    """Of a convert job: beside torch eager, which was measured at another time."""
    found = report.get("speedup_over_torch_eager")
    if not isinstance(found, Mapping) or not found:
        return ""
    rows = [
        {
            "rows of a run": batch,
            "times as fast as torch eager": ratio,
            "ms (median)": _at(report.get("latency"), batch).get("p50_ms"),
            "load of the machine": _rounded(_at(report.get("latency"), batch).get("load_1m")),
        }
        for batch, ratio in found.items()
    ]
    note = "The two were measured at different times: an evaluate job with a baseline measures in turns."
    return f'{tables.table(rows, caption="speed")}<p class="note">{note}</p>'


def _at(given: Any, batch: Any) -> Told:
    """The latency of a number of rows."""
    for timed in given if isinstance(given, list) else ():
        if isinstance(timed, Mapping) and str(timed.get("batch")) == str(batch):
            return timed
    return {}


def _rounded(value: Any) -> float | None:
    return round(float(value), 1) if _number(value) else None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
