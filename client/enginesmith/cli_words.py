"""Figures as people read them: intervals, changes, ratios with their spread, latencies, sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .progress import figure

CROWDED = 1.5  # of the cores, as a load average: from here on others were at work, too
SPREAD = "in brackets: the middle half of the rounds"


def quality(given: Any, *, named: bool = True) -> str:
    """accuracy 0.9000 [0.8900, 0.9100]"""
    if not isinstance(given, Mapping) or given.get("value") is None:
        return ""
    span = f" [{given['low']:.4f}, {given['high']:.4f}]" if given.get("low") is not None else ""
    name = str(given.get("name") or "") if named else ""
    return f"{name} {given['value']:.4f}{span}".strip()


def difference(given: Any) -> str:
    """-0.30 points [-1.10, +0.50]; of another figure than accuracy without points."""
    if not isinstance(given, Mapping) or given.get("difference") is None:
        return ""
    in_points = given.get("name", "accuracy") == "accuracy"
    scale, unit, digits = (100, " points", 2) if in_points else (1, "", 4)
    told = f"{scale * float(given['difference']):+.{digits}f}{unit}"
    if given.get("low") is None or given.get("high") is None:
        return told
    return told + f" [{scale * float(given['low']):+.{digits}f}, {scale * float(given['high']):+.{digits}f}]"


def allowed(bound: float, changed: Any) -> str:
    """A loss that is allowed: 0.01 → 1 point; as it is where `changed` is of another figure than accuracy."""
    if isinstance(changed, Mapping) and changed.get("name", "accuracy") != "accuracy":
        return f"{bound:g}"
    points = round(100 * bound, 2)
    return f"{points:g} point" if points == 1 else f"{points:g} points"


def times(given: Any) -> str:
    """A ratio with its spread, 1.09× [1.07, 1.15]; or one per batch."""
    if isinstance(given, Mapping):
        if given.get("ratio") is None:
            return "  ".join(f"{times(v)} at {k}" for k, v in given.items())
        low, high = given.get("low"), given.get("high")
        spread = f" [{low:.2f}, {high:.2f}]" if low is not None and high is not None and low != high else ""
        return f"{float(given['ratio']):.2f}×{spread}"
    return f"{given:.2f}×" if isinstance(given, int | float) else ""


def speedup(ratios: Mapping[str, Any], spread: Any) -> str:
    """`2.50× [2.31, 2.60] at batch 1`, and what may be nothing is called so. spread: batch → {ratio, low, high}."""
    known = spread if isinstance(spread, Mapping) else {}
    told = []
    for batch, ratio in ratios.items():
        found = known.get(batch) or ratio
        unclear = isinstance(found, Mapping) and None not in (found.get("low"), found.get("high"))
        unclear = unclear and found["low"] <= 1 <= found["high"]
        told.append(f"{times(found)} at batch {batch}" + (" (no difference shown)" if unclear else ""))
    return "  ".join(told)


def latency(timed: Any) -> str:
    """0.07 at batch 1  0.825 at batch 64"""
    return "  ".join(f"{t['p50_ms']:.3g} at batch {t['batch']}" for t in _measured(timed))


def measured_on(timed: Any) -> str:
    """openvino, 2 threads"""
    rows = _measured(timed)
    if not rows:
        return ""
    name, threads = rows[0].get("runtime"), rows[0].get("threads")
    name = "torch eager" if name == "torch" else str(name or "")
    device = rows[0].get("device") if str(rows[0].get("device") or "cpu") != "cpu" else None
    more = device or (f"{threads} thread{'' if threads == 1 else 's'}" if threads else "")
    return ", ".join(part for part in (name, more) if part)


def busy(timed: Any, cores: int | None) -> str | None:
    """A remark, where the load of the machine was more than these measurements make. cores: None where not known."""
    loads = [
        (float(t["load_1m"]), int(t.get("threads") or 1)) for t in _measured(timed) if t.get("load_1m") is not None
    ]
    over = [load for load, threads in loads if load > (CROWDED * cores if cores else CROWDED * threads + 1)]
    if not over:
        return None
    return f"the machine was busy while this was measured (load {max(over):.1f}): latencies and speed-ups may be off"


def _measured(timed: Any) -> list[Mapping[str, Any]]:
    rows: Sequence[Any] = timed if isinstance(timed, list) else []
    return [t for t in rows if isinstance(t, Mapping) and t.get("p50_ms") is not None]


def change(before: Any, after: Any, write: Callable[[Any], str] | None = None) -> str:
    """21,840 → 5,675 (-74%); one of them alone where the other is not known or the same."""
    told = write or grouped
    if after is None:
        return ""
    if before is None or before == after:
        return told(after)
    if not before:
        return f"{told(before)} → {told(after)}"
    share = after / before - 1
    return f"{told(before)} → {told(after)} ({share:{'+.0%' if abs(share) >= 0.01 else '+.1%'}})"


def grouped(value: Any) -> str:
    """1,234,567"""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return f"{int(value):,}" if whole else figure(value)


def cell(value: Any) -> str:
    """Anything, in one line of a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, int):
        return grouped(value)
    if isinstance(value, float) and abs(value) >= 1000:
        return f"{value:,.0f}"
    if isinstance(value, Mapping):
        if value.keys() == {"before", "after"} and not isinstance(value["before"], Mapping):
            return change(value["before"], value["after"]) if _number(value["before"]) else _arrow(value)
        return " ".join(f"{k}={cell(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(cell(v) for v in value)
    return figure(value)


def _arrow(pair: Mapping[str, Any]) -> str:
    return f"{cell(pair['before'])} → {cell(pair['after'])}"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def size(count: float | None) -> str:
    """Bytes for people."""
    if count is None:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def seconds(value: float) -> str:
    """A duration that was estimated."""
    if value < 1:
        return "a second, or less"
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
