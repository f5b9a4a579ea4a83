"""The sizes that plans are built for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Unprocessable
from app.runtimes._trt.shapes import Bounds, profiles

SIZES = st.integers(1, 64)
INPUT = st.lists(st.one_of(st.just(-1), SIZES), min_size=1, max_size=4).map(lambda tail: (-1, *tail))


@given(INPUT, st.lists(SIZES, min_size=5, max_size=5), SIZES, st.lists(st.integers(-1, 100), max_size=4))
def test_profiles_are_in_order_and_take_every_batch_once(
    shape: tuple[int, ...], said: list[int], max_batch: int, buckets: list[int]
) -> None:
    largest = (1, *said[1 : len(shape)])
    made = [p["x"] for p in profiles({"x": shape}, max_batch, {"x": largest}, buckets)]
    for bounds in made:
        for axis, (least, best, most) in enumerate(zip(bounds.smallest, bounds.best, bounds.largest, strict=True)):
            assert 1 <= least <= best <= most
            if shape[axis] >= 0:
                assert least == best == most == shape[axis]
            elif axis > 0:
                assert (least, best, most) == (1, largest[axis], largest[axis])
    rows = [n for bounds in made for n in range(bounds.smallest[0], bounds.largest[0] + 1)]
    assert rows == list(range(1, max_batch + 1))
    if not any(b > 0 for b in buckets):
        assert len(made) == 1


def test_one_profile_is_fastest_at_what_is_usual() -> None:
    assert profiles({"x": (-1, 3)}, 64, {}) == [{"x": Bounds((1, 3), (8, 3), (64, 3))}]
    assert profiles({"x": (-1, 3)}, 4, {}) == [{"x": Bounds((1, 3), (4, 3), (4, 3))}]


def test_buckets_are_fastest_when_they_are_full() -> None:
    assert profiles({"x": (-1, 3)}, 64, {}, (1, 8)) == [
        {"x": Bounds((1, 3), (1, 3), (1, 3))},
        {"x": Bounds((2, 3), (8, 3), (8, 3))},
        {"x": Bounds((9, 3), (64, 3), (64, 3))},
    ]


def test_a_first_axis_that_is_no_batch_widens_the_last_profile_alone() -> None:
    made = profiles({"x": (-1, 3), "tokens": (-1,)}, 8, {"tokens": (100,)}, (1, 8))
    assert [p["tokens"] for p in made] == [Bounds((1,), (1,), (1,)), Bounds((2,), (8,), (100,))]
    assert [p["x"].largest[0] for p in made] == [1, 8]


def test_what_has_to_be_said() -> None:
    with pytest.raises(Unprocessable) as refused:
        profiles({"x": (-1, 3, -1, 5)}, 8, {})
    assert refused.value.code == "open_shape"
    assert refused.value.hint == 'say it: "shapes": {"x": [1, 3, 1, 5]}'
    with pytest.raises(Unprocessable):
        profiles({"x": (-1, -1)}, 8, {"x": (1, 2, 3)})
