"""Words in a drawing do not lie upon each other."""

from __future__ import annotations

from itertools import combinations

import pytest
from matplotlib.figure import Figure

from app.report.labels import SIZE, Box, Named, levels, name_points, width, without_common_end


def written(points: list[Named]) -> dict[str, Box]:
    """The box of every name that was written, on a drawing of the size of a phone."""
    canvas = Figure(figsize=(4.0, 2.7), dpi=72, layout="constrained")
    axes = canvas.add_subplot()
    axes.plot([p.x for p in points], [p.y for p in points], "o")
    canvas.draw_without_rendering()
    name_points(axes, points, [])
    found = {}
    for text in axes.texts:
        x, y = axes.transData.transform(text.xy)
        right, up = text.xyann
        found[text.get_text()] = Box(x + right, y + up, x + right + width(text.get_text()), y + up + 1.2 * SIZE)
    return found


@pytest.mark.parametrize("spread", [1.0, 0.1, 0.001])
def test_names_of_points_keep_apart(spread: float) -> None:
    points = [Named(1 + spread * n, 0.9 + 0.001 * spread * n, f"channels -{n}5 % · int8") for n in range(6)]
    boxes = written([Named(0.0, 0.5, "far away"), *points])
    assert len(boxes) >= 3
    assert not any(one.meets(other) for one, other in combinations(boxes.values(), 2))
    for box in boxes.values():
        assert box.left >= 0
        assert box.right <= 4 * 72
        assert box.top <= 2.7 * 72


def test_what_all_have_in_common_at_the_end_is_not_said() -> None:
    assert without_common_end(["a · int8 · x", "b · fp32 · x"]) == ["a · int8", "b · fp32"]
    assert without_common_end(["a · x", "b · y"]) == ["a · x", "b · y"]
    assert without_common_end(["trial 1", "trial 1", ""]) == ["trial 1", "trial 1", ""]
    assert without_common_end(["alone · x"]) == ["alone · x"]


def test_names_of_marks_that_are_close_stand_in_lines() -> None:
    assert levels([(0, 10), (12, 20)]) == [0, 0]
    assert levels([(0, 10), (5, 15), (11, 20), (14, 30)]) == [0, 1, 0, 2]
