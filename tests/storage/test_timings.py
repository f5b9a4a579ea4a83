"""What builds have measured: the newest is kept and named, and what has no name goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.sweeping import sweep
from app.storage.timings import Timings

Make = Callable[[str], Timings]


@pytest.fixture
def make(artifacts: Artifacts, catalog: Catalog) -> Make:
    return lambda of: Timings(artifacts, catalog.redis, of)


def test_one_for_each_kind_of_gpu(make: Make, artifacts: Artifacts) -> None:
    assert make("a").read() == b""
    for of in "ab":
        assert make(of).write(of.encode())
    first = make("a")
    assert first.read() == b"a"
    assert first.write(b"a, and more")
    assert first.write(b"a, and more")
    assert make("a").read() == b"a, and more"
    assert make("b").read() == b"b"
    assert len(list(artifacts.keys("timing"))) == 2  # what was replaced went at once


def test_who_has_not_read_the_newest_does_not_replace_it(make: Make, artifacts: Artifacts) -> None:
    first, second = make("a"), make("a")
    assert first.read() == second.read() == b""
    assert first.write(b"first")
    assert not second.write(b"second")
    assert second.read() == b"first"
    assert second.write(b"first and second")
    assert not first.write(b"first again")
    assert make("a").read() == b"first and second"


def test_what_another_kind_has_too_stays(make: Make) -> None:
    first, second = make("a"), make("b")
    assert first.write(b"empty")
    assert second.write(b"empty")
    assert first.write(b"more")
    assert make("b").read() == b"empty"


def test_a_damaged_one_and_one_that_is_gone_begin_anew(make: Make, artifacts: Artifacts) -> None:
    timings = make("a")
    assert timings.write(b"measured")
    (key,) = artifacts.keys("timing")
    artifacts.put_bytes(b"something else", key)
    assert timings.read() == b""
    assert timings.write(b"measured")  # the same content, in the place of the damaged one
    assert timings.read() == b"measured"
    artifacts.delete(key)
    assert timings.read() == b""
    assert timings.write(b"anew")
    assert make("a").read() == b"anew"


def test_one_that_has_grown_too_large_is_begun_anew(
    make: Make, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.storage.timings.MOST", 8)
    timings = make("a")
    assert timings.write(b"12345678")
    assert timings.write(b"123456789")
    assert make("a").read() == b""
    assert list(artifacts.keys("timing")) == []
    assert timings.write(b"1")
    assert make("a").read() == b"1"


def test_the_sweeper_takes_what_has_no_name(make: Make, artifacts: Artifacts, catalog: Catalog) -> None:
    first, second = make("a"), make("a")
    assert first.write(b"first")
    assert not second.write(b"second")
    assert sweep(artifacts, catalog, older_than_s=3600) == 0
    assert sweep(artifacts, catalog, older_than_s=-1) == 1
    assert make("a").read() == b"first"
