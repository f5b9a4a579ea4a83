"""Which sizes an engine is run with before anybody asks it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from app.domain.records import Made, Signature, Tensor, Version, now
from app.errors import Internal
from app.runtimes import Arrays
from app.runtimes.echo import EchoEngine
from app.serving import warming
from app.serving.warming import warm


class Dear(EchoEngine):
    """An echo that finds the first run of a size dear."""

    def __init__(self, signature: Signature, **options: Any) -> None:
        super().__init__(signature, **options)
        self.met: set[int] = set()

    def infer(self, inputs: Arrays) -> dict[str, np.ndarray]:
        outputs = super().infer(inputs)
        self.met.add(self.seen[-1])
        return outputs


def signature(*shape: int, batch_axis: int | None = 0, dtype: Any = "float32") -> Signature:
    def tensor(name: str) -> Tensor:
        return Tensor(name=name, shape=shape, batch_axis=batch_axis, dtype=dtype)

    return Signature(inputs=(tensor("x"),), outputs=(tensor("y"),))


def version(of: Signature, **details: Any) -> Version:
    return Version.model_validate(
        {
            "name": "net",
            "version": 1,
            "format": "onnxruntime",
            "folder": "f",
            "files": {},
            "bytes": 0,
            "signature": of,
            "made_by": Made(job="j", spec={}),
            "details": details,
            "created_at": now(),
        }
    )


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_the_powers_of_two_and_the_largest(most: int, sizes: list[int]) -> None:
    engine = EchoEngine(signature(-1, 3))
    warm(engine, version(engine.signature), most)
    assert engine.seen == sizes


@pytest.mark.parametrize("most", [1, 2, 3, 9, 40, 64, 100])
def test_more_of_them_where_the_first_run_of_one_is_dear(most: int) -> None:
    engine = Dear(signature(-1, 3))
    warm(engine, version(engine.signature), most)
    assert len(engine.seen) == len(engine.met)
    for rows in range(1, most + 1):
        assert any(rows <= size <= 1.25 * rows for size in engine.met)
    assert max(engine.met) == most
    assert len(engine.met) <= 23


def test_which_they_are() -> None:
    engine = Dear(signature(-1, 3))
    warm(engine, version(engine.signature), 24)
    assert engine.seen == [1, 2, 4, 8, 16, 24, 3, 5, 6, 7, 10, 12, 14, 20]


def test_it_stops_between_when_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warming, "_BETWEEN_S", 0.0)
    engine = Dear(signature(-1, 3))
    warm(engine, version(engine.signature), 64)
    assert engine.met == {1, 2, 4, 8, 16, 32, 64}


def test_it_stops_at_large_ones_when_it_takes_very_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warming, "_BUCKETS_S", 0.0)
    engine = EchoEngine(signature(-1, 3))
    warm(engine, version(engine.signature), 64)
    assert engine.seen == [1]


def test_every_instance_at_the_same_time() -> None:
    together = threading.Barrier(3)

    class Meeting(EchoEngine):
        def infer(self, inputs: Arrays) -> dict[str, np.ndarray]:
            together.wait(60)
            return super().infer(inputs)

    engine = Meeting(signature(-1, 3))
    warm(engine, version(engine.signature), 2, instances=3)
    assert engine.seen == [1, 1, 1, 2, 2, 2]


def test_open_dimensions_are_warmed_as_measured_or_not_at_all() -> None:
    engine = EchoEngine(signature(-1, -1))
    warm(engine, version(engine.signature), 4)
    assert engine.seen == []
    warm(engine, version(engine.signature, shapes={"x": [1, 7]}), 4)
    assert engine.seen == [1, 2, 4]


def test_without_a_batch_one_run() -> None:
    engine = EchoEngine(signature(1, 3, batch_axis=None))
    warm(engine, version(engine.signature), 8)
    assert engine.seen == [1]


def test_strings() -> None:
    engine = EchoEngine(signature(-1, 2, dtype="string"))
    warm(engine, version(engine.signature), 2)
    assert engine.seen == [1, 2]


def test_an_engine_that_does_not_run_on_zeros() -> None:
    class Picky(EchoEngine):
        def infer(self, inputs: Arrays) -> dict[str, np.ndarray]:
            raise Internal("no", code="engine_failed")

    fixed, open_ = signature(-1, 3), signature(-1, -1)
    with pytest.raises(Internal):
        warm(Picky(fixed), version(fixed), 4)
    warm(Picky(open_), version(open_, shapes={"x": [1, 7]}), 4)  # zeros of our own may not fit it
