"""Where words stand in a drawing, so that none lies upon another: names of points, and names of marks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import NamedTuple

from matplotlib.axes import Axes

SIZE = 7.5
# Of a letter, in ems: the browser's own fonts, in which it is shown, are wider than matplotlib's.
_WIDE, _HIGH = 0.58, 1.2
_NEAR = (5.0, 13.0, 22.0)


class Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )


class Named(NamedTuple):
    """A point of the data, and its name."""

    x: float
    y: float
    name: str


def name_points(axes: Axes, points: Sequence[Named], others: Iterable[tuple[float, float]]) -> None:
    """Writes each name beside its point where there is room, away from the `others` if that can be; one for which there
    is none is left out (the table has it). The figure is laid out by now, at 72 dots an inch."""
    inside, whole = axes.get_window_extent(), axes.figure.bbox
    room = Box(inside.x0, inside.y0, whole.x1 - 1, min(inside.y1 + 8, whole.y1 - 1))
    texts = without_common_end([point.name for point in points])
    points = [point._replace(name=cut(text)) for point, text in zip(points, texts, strict=True)]
    dots = [Box(x - 3, y - 3, x + 3, y + 3) for x, y in _places(axes, [*others, *((p.x, p.y) for p in points)])]
    taken: list[Box] = []
    for point, (x, y) in zip(points, _places(axes, [(p.x, p.y) for p in points]), strict=True):
        spots = [spot for spot in _spots(x, y, point.name) if _within(spot, room)]
        free = [spot for spot in spots if not any(spot.meets(box) for box in taken)]
        best = next((spot for spot in free if not any(spot.meets(dot) for dot in dots)), free[0] if free else None)
        if best is None:
            continue
        taken.append(best)
        axes.annotate(
            point.name, (point.x, point.y), xytext=(best.left - x, best.bottom - y), textcoords="offset points",
            fontsize=SIZE, ha="left", va="bottom",
        ).set_in_layout(False)  # fmt: skip


def levels(spans: Sequence[tuple[float, float]]) -> list[int]:
    """In which line each label stands, so that none in a line overlaps another: the lowest that is free. spans: from
    left to right of each."""
    lines: list[list[tuple[float, float]]] = []
    found = []
    for left, right in spans:
        line = next((n for n, held in enumerate(lines) if all(right <= a or b <= left for a, b in held)), len(lines))
        if line == len(lines):
            lines.append([])
        lines[line].append((left, right))
        found.append(line)
    return found


def width(text: str) -> float:
    """About how wide it is, in points."""
    return _WIDE * SIZE * len(text) + 2


def without_common_end(texts: Sequence[str]) -> list[str]:
    """Without the last part (` · openvino`) where all have the same."""
    ends = {text.rpartition(" · ")[2] for text in texts}
    return [text.rpartition(" · ")[0] or text for text in texts] if len(ends) == 1 < len(texts) else list(texts)


def compact(value: float) -> str:
    """50000 → 50k."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(unit, 1e4):
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def cut(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def short(text: str, most: int) -> str:
    """The end says more than the beginning: layer4.1.conv2."""
    return text if len(text) <= most else "…" + text[1 - most :]


def _spots(x: float, y: float, name: str) -> Iterable[Box]:
    """Around the point, near ones first."""
    wide, high = width(name), _HIGH * SIZE
    for near in _NEAR:
        for down, right in product((0.0, 1.0, -1.0), (1.0, -1.0, 0.0)):
            if down == right == 0:
                continue
            left = x + near if right > 0 else x - near - wide if right < 0 else x - wide / 2
            middle = y - down * (near + high / 2)
            yield Box(left, middle - high / 2, left + wide, middle + high / 2)


def _within(spot: Box, room: Box) -> bool:
    return room.left <= spot.left and spot.right <= room.right and room.bottom <= spot.bottom and spot.top <= room.top


def _places(axes: Axes, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in axes.transData.transform(points)] if points else []
