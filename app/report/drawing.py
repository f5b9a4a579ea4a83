"""A figure drawn by matplotlib: an SVG that takes its ink from the page around it. The only file that imports it."""

from __future__ import annotations

import io
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from app.report.figures import Axis, Figure, Series, describe
from app.report.labels import SIZE, Named, compact, levels, name_points, short, width

# Told apart on white and on near-black alike (a contrast of 3:1 or more).
COLOURS = ("#3a7fd5", "#d9690d", "#2a9557", "#d0434e", "#8e62d6", "#1a90a6", "#c757a0", "#85851f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_SIGNS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "★")
# Drawn in these, and written into the page as its own colours of text and of lines.
_INK, _FAINT = "#010203", "#040506"
# Inches. matplotlib's points become the drawing's units: 288 across, about what a phone has, so text keeps its size.
_WIDTH, _HEIGHT, _ROW = 4.0, 2.7, 0.19
_MOST_NAMES, _MOST_LABELS, _MOST_DOTS = 80, 6, 300
_ACROSS = 225.0  # points from the left of the axes to the right, about
_STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "enginesmith", "text.parse_math": False, "font.size": 9,
    "axes.labelsize": 9, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "text.color": _INK, "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT, "xtick.color": _FAINT, "ytick.color": _FAINT, "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK, "grid.color": _FAINT, "grid.linewidth": 0.5, "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "lines.linewidth": 1.6, "lines.markersize": 4,
    "axes.unicode_minus": False, "axes.formatter.use_mathtext": False,
}  # fmt: skip


def draw(figure: Figure, name: str) -> str:
    """An <svg> for a page of HTML. name: what ids inside it begin with. Raises what matplotlib raises."""
    with mpl.rc_context(_STYLE):
        lying = figure.kind == "intervals" or (figure.kind == "bars" and _lies(figure))
        height = _HEIGHT
        if figure.kind == "intervals":
            height = max(1.3, 0.9 + 0.28 * figure.rows)
        elif lying:
            height = max(_HEIGHT, 0.8 + _ROW * len(figure.names or ()) * min(3, len(figure.series)))
        canvas = Canvas(figsize=(_WIDTH, height), layout="constrained", dpi=72)
        canvas.patch.set_visible(False)
        axes = canvas.add_subplot()
        axes.patch.set_visible(False)
        axes.grid(True, axis="x" if lying else "y", alpha=0.6)
        _DRAWN[figure.kind](axes, figure)
        _scale(axes, figure, lying)
        _mark(axes, figure)
        if figure.kind == "points":
            canvas.draw_without_rendering()  # so that it is known where the points lie
            _name(axes, figure)
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _tidied(text.getvalue(), name, describe(figure))


def key(figure: Figure) -> str:
    """Names of the series beside the marks they are drawn with; nothing for one that the axis names already."""
    if len(figure.series) < 2:
        return ""
    signs = _SIGNS if figure.kind == "points" else ("■",)
    items = "".join(
        f'<li><span style="color:{colour(i)}" aria-hidden="true">{signs[i % len(signs)]}</span> {escape(s.name)}</li>'
        for i, s in enumerate(figure.series)
    )
    return f'<ul class="key">{items}</ul>'


def colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _lines(axes: Axes, figure: Figure) -> None:
    for i, series in enumerate(figure.series):
        dots = MARKERS[i % len(MARKERS)] if len(series.x) <= 25 else None
        axes.plot(series.x, series.y, color=colour(i), marker=dots, linestyle=("-", "--")[i // len(COLOURS) % 2])
        if series.low is not None and series.high is not None:
            axes.fill_between(series.x, series.low, series.high, color=colour(i), alpha=0.18, linewidth=0)


def _points(axes: Axes, figure: Figure) -> None:
    for i, series in enumerate(figure.series):
        if series.low is not None and series.high is not None:
            reach = [_reach(series, low=True), _reach(series, low=False)]
            axes.errorbar(
                series.x, series.y, yerr=reach, fmt="none", ecolor=colour(i), elinewidth=1, capsize=2, alpha=0.7
            )
        line = "-" if series.line else "none"
        axes.plot(
            series.x, series.y, color=colour(i), marker=MARKERS[i % len(MARKERS)], linestyle=line, linewidth=1,
            markersize=5 if figure.rows < 60 else 3,
        )  # fmt: skip


def _name(axes: Axes, figure: Figure) -> None:
    named, points, others = _named(figure), list[Named](), list[tuple[float, float]]()
    for i, series in enumerate(figure.series):
        if series.labels is not None and i in named:
            points += [Named(x, y, t) for x, y, t in zip(series.x, series.y, series.labels, strict=True) if t]
        else:
            others += zip(series.x, series.y, strict=True)
    name_points(axes, points[::-1], others[:_MOST_DOTS])  # the last series is the one that matters most


def _named(figure: Figure) -> set[int]:
    """The series whose points bear their names: the smallest ones, as long as all together are few."""
    found, count = set(), 0
    for i in sorted(range(len(figure.series)), key=lambda i: len(figure.series[i].x)):
        count += len(figure.series[i].x)
        if count <= _MOST_LABELS:
            found.add(i)
    return found


def _bars(axes: Axes, figure: Figure) -> None:
    count = len(figure.series)
    lying = _lies(figure)
    width = 0.8 / count
    if figure.names is None and (spacing := _spacing(figure.series)) is not None:
        width *= spacing
    for i, series in enumerate(figure.series):
        places = [x + (i - (count - 1) / 2) * width for x in series.x]
        draw_bars = axes.barh if lying else axes.bar
        draw_bars(places, series.y, width * 0.95, color=colour(i))
        if series.low is not None and series.high is not None:
            reach = [_reach(series, low=True), _reach(series, low=False)]
            thin: Any = {"fmt": "none", "ecolor": _INK, "elinewidth": 0.8, "capsize": 2}
            if lying:
                axes.errorbar(series.y, places, xerr=reach, **thin)
            else:
                axes.errorbar(places, series.y, yerr=reach, **thin)


def _histogram(axes: Axes, figure: Figure) -> None:
    for i, series in enumerate(figure.series):
        spacing = _spacing([series]) or 1.0
        if len(figure.series) == 1:
            axes.bar(series.x, series.y, spacing, color=colour(i), alpha=0.85, edgecolor=colour(i), linewidth=0.5)
        else:  # outlines: bars would hide each other
            edges = [x - spacing / 2 for x in series.x] + [series.x[-1] + spacing / 2]
            axes.stairs(series.y, edges, color=colour(i), fill=True, alpha=0.12)
            axes.stairs(series.y, edges, color=colour(i), linewidth=1.4)


def _intervals(axes: Axes, figure: Figure) -> None:
    names: list[str] = []
    for i, series in enumerate(figure.series):
        rows = [float(len(names) + k) for k in range(len(series.x))]
        names += [short(n, 22) for n in series.labels or [series.name] * len(series.x)]
        if series.low is not None and series.high is not None:
            reach = [_reach(series, low=True, of_x=True), _reach(series, low=False, of_x=True)]
            axes.errorbar(series.x, rows, xerr=reach, fmt="none", ecolor=colour(i), elinewidth=2, capsize=4)
        axes.plot(series.x, rows, color=colour(i), marker="o", linestyle="none", markersize=6)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.yaxis.set_major_locator(FixedLocator(range(len(names))))
    axes.set_yticklabels(names)


_DRAWN = {"lines": _lines, "points": _points, "bars": _bars, "histogram": _histogram, "intervals": _intervals}


def _lies(figure: Figure) -> bool:
    """Names are written beside bars that lie, unless they are few and short."""
    names = figure.names or ()
    return len(names) > 6 or any(len(n) > 6 for n in names) if names else False


def _scale(axes: Axes, figure: Figure, lying: bool) -> None:
    across, up = (figure.y, figure.x) if lying and figure.kind == "bars" else (figure.x, figure.y)
    axes.set_xlabel(across.label)
    axes.set_ylabel(up.label)
    for axis, which in ((across, "x"), (up, "y")):
        if axis.log and _spans(figure, axis):
            getattr(axes, f"set_{which}scale")("log")
            drawn = axes.xaxis if which == "x" else axes.yaxis
            # matplotlib's own labels are in TeX.
            drawn.set_major_locator(LogLocator(subs=_steps(figure, axis), numticks=8))
            drawn.set_major_formatter(FuncFormatter(lambda v, _: compact(v)))
            drawn.set_minor_formatter(NullFormatter())
        elif max(map(abs, _values(figure, axis)), default=0) >= 1e4:
            drawn = axes.xaxis if which == "x" else axes.yaxis
            drawn.set_major_formatter(FuncFormatter(lambda v, _: compact(v)))
    if figure.names is not None:
        named = axes.yaxis if lying else axes.xaxis
        step = math.ceil(len(figure.names) / _MOST_NAMES)
        named.set_major_locator(FixedLocator(range(0, len(figure.names), step)))
        named.set_ticklabels([short(n, 24) for n in figure.names[::step]])
        named.set_minor_locator(NullLocator())
        if lying:
            axes.set_ylim(len(figure.names) - 0.4, -0.6)
    elif figure.kind == "lines" and not figure.x.log and all(x == int(x) for s in figure.series for x in s.x):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    elif axes.get_xscale() == "linear" and figure.kind != "intervals":
        axes.xaxis.set_major_locator(MaxNLocator(6))


def _mark(axes: Axes, figure: Figure) -> None:
    """Lines to compare with. Names of upright ones stand above the drawing, in several lines where they are close."""
    for mark in figure.marks:
        line = axes.axvline if mark.axis == "x" else axes.axhline
        line(mark.at, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)))
        if mark.axis == "y":
            axes.annotate(
                short(mark.label, 24), (1, mark.at), xycoords=("axes fraction", "data"), xytext=(0, 2),
                textcoords="offset points", ha="right", va="bottom", fontsize=SIZE,
            )  # fmt: skip
    upright = sorted((mark for mark in figure.marks if mark.axis == "x"), key=lambda mark: mark.at)
    to_share, level = axes.transData + axes.transAxes.inverted(), axes.get_ylim()[0]
    spans = []
    for mark in upright:
        middle = _ACROSS * float(to_share.transform((mark.at, level))[0])
        half = width(short(mark.label, 18)) / 2
        spans.append((middle - half, middle + half))
    for mark, line_number in zip(upright, levels(spans), strict=True):
        axes.annotate(
            short(mark.label, 18), (mark.at, 1), xycoords=("data", "axes fraction"), xytext=(0, 2 + 9 * line_number),
            textcoords="offset points", ha="center", va="bottom", fontsize=SIZE,
        )  # fmt: skip


def _steps(figure: Figure, axis: Axis) -> tuple[float, ...]:
    """Which numbers within a decade are written: the fewer, the more decades there are."""
    values = _values(figure, axis)
    decades = math.log10(max(values) / min(values))
    return (1.0, 2.0, 5.0) if decades < 1.2 else (1.0, 3.0) if decades < 2.5 else (1.0,)


def _values(figure: Figure, axis: Axis) -> list[float]:
    return [v for s in figure.series for v in (s.x if axis is figure.x else s.y) if math.isfinite(v)]


def _spans(figure: Figure, axis: Axis) -> bool:
    """Whether logarithms are of use: all above zero, and the largest thrice the smallest."""
    values = _values(figure, axis)
    return min(values, default=0) > 0 and max(values) >= 3 * min(values)


def _spacing(series: Sequence[Series]) -> float | None:
    places = sorted({x for s in series for x in s.x})
    return min((b - a for a, b in pairwise(places)), default=None)


def _reach(series: Series, *, low: bool, of_x: bool = False) -> list[float]:
    """How far below or above its middle each interval goes; 0 where it says nothing."""
    middles = series.x if of_x else series.y
    ends = (series.low if low else series.high) or []
    found = (m - e if low else e - m for m, e in zip(middles, ends, strict=True))
    return [max(0.0, r) if math.isfinite(r) else 0.0 for r in found]


_LINK = "{http://www.w3.org/1999/xlink}href"
_FONT = re.compile(r"font-family: [^;]*;? ?")


def _tidied(text: str, name: str, told: str) -> str:
    """The drawing as a part of a page: as wide as there is room, ids its own, inks and fonts the page's, and no
    address of anything outside."""
    root = ET.fromstring(text)
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'xlink:href="#([^"]+)"', text))
    for parent in root.iter():
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        if (id := element.attrib.pop("id", None)) in used:
            element.set("id", f"{name}-{id}")
        if link := element.attrib.pop(_LINK, None):
            element.set("href", f"#{name}-{link[1:]}")
        for key in ("clip-path", "style"):
            if key in element.attrib:
                value = element.attrib[key].replace("url(#", f"url(#{name}-")
                value = _FONT.sub("", value)
                element.set(key, value.replace(_INK, "currentColor").replace(_FAINT, "var(--line)"))
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": told})
    return ET.tostring(root, encoding="unicode")


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
