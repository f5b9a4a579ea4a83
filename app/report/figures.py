"""A figure as data: what a pass puts into `report["figures"]`, read with patience, and told in words and in a table.

{"title", "kind": "lines" | "bars" | "points" | "histogram" | "intervals", "x": {"label", "log"?}, "y": {…},
 "series": [{"name", "x": […], "y": […], "low"?: […], "high"?: […], "labels"?: […], "line"?: bool}],
 "marks"?: [{"axis": "x" | "y", "at": number, "label"}], "note"?}

bars: x may be names, or `labels` are. histogram: x are the samples; with y the middles of bins, or their edges
where there is one more.
intervals: one row per point, named by `labels`, from low over x to high. marks: lines that a reader compares with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from app.report.words import figure as told

KINDS = ("lines", "bars", "points", "histogram", "intervals")
MOST_SERIES, MOST_POINTS, MOST_MARKS = 24, 4000, 20
Numbers = list[float]


@dataclass(frozen=True)
class Axis:
    label: str = ""
    log: bool = False


@dataclass(frozen=True)
class Series:
    """One line, cloud or row of bars. What is missing in y, low or high is NaN."""

    name: str
    x: Numbers
    y: Numbers
    low: Numbers | None = None
    high: Numbers | None = None
    labels: list[str] | None = None
    line: bool = False


@dataclass(frozen=True)
class Mark:
    axis: str
    at: float
    label: str


@dataclass(frozen=True)
class Figure:
    """names: of the places 0, 1, 2 … on the x axis, where these are names."""

    title: str
    kind: str
    x: Axis
    y: Axis
    series: list[Series]
    note: str | None = None
    names: list[str] | None = None
    marks: list[Mark] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(len(s.x) for s in self.series)


class Unreadable(ValueError):
    """What was given is no figure."""


def read(given: Any) -> Figure:
    """Raises Unreadable for what has no series of a known kind; points that are no numbers are left out."""
    if not isinstance(given, Mapping):
        raise Unreadable("a figure is an object")
    kind = given.get("kind")
    if kind not in KINDS:
        raise Unreadable(f"kind is one of {', '.join(KINDS)}, not {str(kind)[:40]!r}")
    raw = [s for s in _list(given.get("series")) if isinstance(s, Mapping)]
    if kind == "bars":
        raw = [_labelled(s) for s in raw]
    names = _names(raw) if kind != "intervals" else None
    series = [_series(s, kind, names, i) for i, s in enumerate(raw[:MOST_SERIES])]
    series = [s for s in series if s.x]
    if not series:
        raise Unreadable("it has no points")
    note = given.get("note")
    return Figure(
        _text(given.get("title"), 200),
        kind,
        _axis(given.get("x")),
        _axis(given.get("y")),
        series,
        _text(note, 2000) or None,
        names,
        [_mark(m) for m in _list(given.get("marks"))[:MOST_MARKS] if isinstance(m, Mapping) and _finite(m.get("at"))],
    )


def describe(figure: Figure) -> str:
    """What the drawing shows, for whoever does not see it."""
    kinds = {"lines": "Lines", "bars": "Bars", "points": "Points", "histogram": "Histogram", "intervals": "Intervals"}
    axes = " against ".join(a.label for a in (figure.y, figure.x) if a.label)
    parts = [f"{kinds[figure.kind]}: {figure.title}." if figure.title else f"{kinds[figure.kind]}."]
    parts += [f"{axes}."] if axes else []
    for series in figure.series[:6]:
        values = [v for v in (series.x if figure.kind == "intervals" else series.y) if math.isfinite(v)]
        if values:
            span = f"{told(values[0])} to {told(values[-1])}, " if figure.kind == "lines" and len(values) > 1 else ""
            parts.append(f"{series.name}: {span}lowest {told(min(values))}, highest {told(max(values))}.")
    return " ".join(parts)


def table(figure: Figure) -> list[dict[str, Any]]:
    """The figure's numbers as rows, for a table."""
    rows = []
    several = len(figure.series) > 1
    for series in figure.series:
        for i, x in enumerate(series.x):
            row: dict[str, Any] = {"series": series.name} if several else {}
            if series.labels is not None:
                row["label"] = series.labels[i]
            row[figure.x.label or "x"] = figure.names[int(x)] if figure.names else x
            if figure.kind != "intervals":
                row[figure.y.label or "y"] = series.y[i]
            for name, values in (("low", series.low), ("high", series.high)):
                if values is not None:
                    row[name] = values[i]
            rows.append(row)
    return rows


def _labelled(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Bars at 0, 1, 2 … that `labels` name are bars at those names."""
    labels, x = _list(raw.get("labels")), _list(raw.get("x"))
    return {**raw, "x": labels, "labels": None} if labels and len(labels) == len(x) else raw


def _names(raw: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """All the names on the x axis in their order, where at least one is no number."""
    given = [x for s in raw for x in _list(s.get("x"))]
    if not any(isinstance(x, str) for x in given):
        return None
    return list(dict.fromkeys(_text(x, 120) for x in given))


def _series(raw: Mapping[str, Any], kind: str, names: list[str] | None, at: int) -> Series:
    places = {name: float(i) for i, name in enumerate(names or ())}
    x = [places[_text(v, 120)] if names else _number(v) for v in _list(raw.get("x"))]
    y = [_number(v) for v in _list(raw.get("y"))]
    if kind == "histogram":
        x, y = _binned(x, y)
    if kind == "intervals":
        y = [float(i) for i in range(len(x))]
    if not x and y:
        x = [float(i) for i in range(len(y))]
    n = min(len(x), len(y))
    low, high = (_more(raw.get(name), n) for name in ("low", "high"))
    labels = [_text(v, 80) for v in _list(raw.get("labels"))] or None
    if labels is not None and len(labels) < n:
        labels += [""] * (n - len(labels))
    found = Series(
        _text(raw.get("name"), 120) or f"series {at + 1}", x[:n], y[:n], low, high, labels, bool(raw.get("line"))
    )
    # A gap in a line stays a gap; elsewhere what is not there is not drawn.
    kept = [i for i in range(n) if math.isfinite(x[i]) and (kind == "lines" or math.isfinite(y[i]))]
    return _at(found, kept[:: max(1, math.ceil(len(kept) / MOST_POINTS))])


def _at(series: Series, rows: list[int]) -> Series:
    def chosen(values: list[Any] | None) -> Any:
        return None if values is None else [values[i] for i in rows]

    return replace(
        series, x=chosen(series.x), y=chosen(series.y), low=chosen(series.low), high=chosen(series.high),
        labels=chosen(series.labels),
    )  # fmt: skip


def _binned(x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
    """Middles of bins and counts, from samples, from middles, or from edges. (matplotlib gets no samples: a table of
    a hundred thousand is no table.)"""
    if y and len(x) == len(y) + 1:
        return [(a + b) / 2 for a, b in pairwise(x)], y
    if x and y:
        return x, y
    samples = sorted(v for v in x or y if math.isfinite(v))
    if not samples:
        return [], []
    low, high = samples[0], samples[-1]
    bins = min(40, max(1, round(2 * len(samples) ** (1 / 3))))  # Rice's rule
    width = (high - low) / bins or 1.0
    counts = [0.0] * bins
    for value in samples:
        counts[min(bins - 1, int((value - low) / width))] += 1
    return [low + (i + 0.5) * width for i in range(bins)], counts


def _axis(given: Any) -> Axis:
    if not isinstance(given, Mapping):
        return Axis(_text(given, 120) if isinstance(given, str) else "")
    return Axis(_text(given.get("label"), 120), bool(given.get("log")))


def _mark(given: Mapping[str, Any]) -> Mark:
    return Mark("y" if given.get("axis") == "y" else "x", float(given["at"]), _text(given.get("label"), 80))


def _more(given: Any, n: int) -> Numbers | None:
    values = [_number(v) for v in _list(given)]
    return (values + [math.nan] * (n - len(values)))[:n] if values else None


def _number(value: Any) -> float:
    return float(value) if _finite(value) else math.nan


def _finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def _text(value: Any, most: int) -> str:
    """What no XML can hold is left out."""
    text = "" if value is None else str(value)[:most]
    return "".join(c for c in text if c.isprintable() or c == " ")


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
