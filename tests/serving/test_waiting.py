"""The order of those who wait: by arrival, by kind, by priority; and that nothing is lost or counted twice."""

from __future__ import annotations

import asyncio
import random

import pytest

from app.serving.waiting import Item, Waiting, level_of


def item(rows: int = 1, kind: object = None, priority: int = 0) -> Item:
    answer: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()
    return Item({}, rows, 8 * rows, kind, answer, level=level_of(priority))  # type: ignore[arg-type]


def queued(*items: Item) -> Waiting:
    waiting = Waiting()
    for one in items:
        waiting.add(one)
    return waiting


@pytest.mark.parametrize(
    ("priority", "level"), [(0, 5), (-3, 5), (1, 1), (4, 4), (5, 5), (9, 9), (10, 9), (2**64 - 1, 9)]
)
def test_levels(priority: int, level: int) -> None:
    assert level_of(priority) == level


async def test_the_oldest_of_a_kind_goes_first_and_takes_its_like() -> None:
    a, b, c, d = item(kind="wide"), item(kind="narrow"), item(kind="wide"), item(kind="narrow")
    waiting = queued(a, b, c, d)
    assert waiting.take(8) == [a, c]
    assert waiting.take(8) == [b, d]
    assert waiting.take(8) == []


async def test_kinds_take_turns_by_the_age_of_their_oldest() -> None:
    items = [item(kind=kind) for kind in "aabababbbb"]
    waiting = queued(*items)
    order = []
    while batch := waiting.take(2):
        order.append((batch[0].kind, len(batch)))
    assert order == [("a", 2), ("b", 2), ("a", 2), ("b", 2), ("b", 2)]


async def test_one_that_does_not_fit_goes_first_next_time() -> None:
    a, b, c = item(3), item(2), item(1)
    waiting = queued(a, b, c)
    assert waiting.take(4) == [a]
    assert waiting.take(4) == [b, c]


async def test_one_that_is_larger_than_asked_for_goes_alone() -> None:
    a, b = item(4), item(1)
    waiting = queued(a, b)
    assert waiting.take(2) == [a]


async def test_a_batch_is_cut_back_to_a_known_size_and_the_order_stays() -> None:
    items = [item(kind="k") for _ in range(7)]
    waiting = queued(*items)
    assert waiting.take(8, {1, 2, 4, 8}) == items[:4]
    assert (waiting.rows, waiting.requests, waiting.nbytes) == (3, 3, 24)
    assert waiting.head() is items[4]
    assert waiting.take(8, {4}) == items[4:]  # none fits: all of them


async def test_a_batch_is_not_cut_back_to_little_of_it() -> None:
    a, b = item(1), item(8)
    assert queued(a, b).take(16, {1, 2, 4, 8, 16}) == [a, b]
    c, d = item(4), item(3)
    assert queued(c, d).take(16, {1, 2, 4, 8, 16}) == [c]


async def test_removing_from_anywhere() -> None:
    items = [item(kind=i % 2) for i in range(6)]
    waiting = queued(*items)
    for gone in (items[0], items[3], items[5]):
        waiting.remove(gone)
        assert not gone.waits
    assert waiting.take(8) == [items[1]]
    assert waiting.take(8) == [items[2], items[4]]
    assert (waiting.rows, waiting.requests, waiting.nbytes) == (0, 0, 0)
    assert waiting._ranked[0].kinds == {}


async def test_clear_gives_everybody() -> None:
    items = [item(kind=i, priority=i) for i in range(4)]
    waiting = queued(*items)
    assert set(waiting.clear()) == set(items)
    assert (waiting.rows, waiting.head()) == (0, None)


async def test_rows_like_counts_what_could_share_a_run() -> None:
    a, b = item(2, "x"), item(5, "y")
    waiting = queued(a, b, item(3, "x", priority=9))
    assert waiting.rows_like(a, 100) == 5
    assert waiting.rows_like(a, 2) == 2


async def test_nothing_is_lost_in_a_long_random_run() -> None:
    chance = random.Random(1)
    waiting, there, taken = Waiting(), set[Item](), 0
    for _ in range(3000):
        one = item(chance.randint(1, 5), chance.choice("abc"), chance.choice([0, 0, 1, 9]))
        waiting.add(one)
        there.add(one)
        if chance.random() < 0.3:
            gone = chance.choice(sorted(there, key=lambda i: i.came))
            waiting.remove(gone)
            there.discard(gone)
        if chance.random() < 0.2:
            batch = waiting.take(8, chance.choice([None, {1, 2, 4, 8}]))
            assert sum(i.rows for i in batch) <= 8
            assert len({i.kind for i in batch}) <= 1
            assert there.issuperset(batch)
            there.difference_update(batch)
            taken += len(batch)
        assert waiting.requests == len(there)
        assert waiting.rows == sum(i.rows for i in there)
    while batch := waiting.take(8):
        there.difference_update(batch)
    assert not there
    assert taken > 0
