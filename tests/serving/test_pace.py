"""What is learned from runs: when to come back, and whether dividing a batch pays."""

from __future__ import annotations

import pytest

from app.serving.pace import Pace


def learned(fixed: float, row: float, sizes: tuple[int, ...] = (1, 2, 8, 3, 16)) -> Pace:
    pace, now = Pace(), 100.0
    for rows in sizes * 4:
        began, now = now, now + fixed + row * rows
        pace.ran(rows, began, now, now)
    return pace


def test_the_drain_rate() -> None:
    pace = learned(0.0, 0.5)
    assert pace.row_s == pytest.approx(0.5)
    assert [pace.retry_s(rows) for rows in (0, 1, 3, 10, 100_000)] == [1, 1, 2, 5, 60]


def test_nothing_measured_is_a_second() -> None:
    assert Pace().retry_s(1000) == 1


def test_time_in_which_nobody_asked_does_not_count() -> None:
    pace = Pace()
    pace.ran(1, 10.0, 10.5, 10.5)
    pace.ran(1, 500.0, 500.5, 500.5)
    assert pace.row_s == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("fixed", "row", "rows", "idle", "first"),
    [
        (0.0, 0.017, 2, 2, 1),  # a large network: a row each
        (0.0, 0.017, 7, 2, 4),
        (0.000045, 0.000022, 3, 2, 3),  # a tiny one: a run costs as much as two rows
        (0.000045, 0.000022, 8, 2, 4),
        (0.001, 0.00001, 64, 4, 64),  # a GPU: whole batches
        (0.0, 0.017, 8, 1, 8),
        (0.0, 0.017, 1, 4, 1),
    ],
)
def test_sharing(fixed: float, row: float, rows: int, idle: int, first: int) -> None:
    assert learned(fixed, row).share(rows, idle) == first


def test_nothing_is_divided_before_different_sizes_were_seen() -> None:
    assert Pace().share(8, 2) == 8
    assert learned(0.001, 0.001, (4, 4)).share(8, 2) == 8


def test_brief_runs() -> None:
    pace = Pace()
    assert not pace.brief(1)  # nothing is known
    pace.ran(8, 0.0, 0.0001, 0.0001)
    assert not pace.brief(1)
    pace.ran(1, 1.0, 1.0003, 1.0003)
    assert pace.brief(1)
    assert pace.brief(3)
    assert not pace.brief(4)
    pace.ran(1, 2.0, 2.1, 2.1)  # one that took long is reason enough to have it done elsewhere
    assert not pace.brief(1)
