from typing import Any

import numpy as np
import pytest

from app.domain.splits import RULE, SEED
from app.errors import BadDataset
from app.intake.manifest import Shares
from app.intake.splits import cut, told


def test_every_row_is_somewhere_once_and_always_in_the_same_place() -> None:
    y = np.random.default_rng(3).integers(0, 7, 1797)
    first = cut(y, Shares(), has_val=False, has_test=False)
    assert {name: len(rows) for name, rows in first.items()} == {"train": 1150, "test": 359, "val": 288}
    assert np.array_equal(np.sort(np.concatenate(list(first.values()))), np.arange(1797))
    second = cut(y, Shares(), has_val=False, has_test=False)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_classes_keep_their_proportions() -> None:
    y = np.repeat([0, 1, 2], [1000, 100, 10])
    found = cut(y, Shares(), has_val=False, has_test=False)
    assert np.bincount(y[found["test"]]).tolist() == [200, 20, 2]
    assert np.abs(np.bincount(y[found["val"]]) - [160, 16, 1.6]).max() < 1
    assert not np.array_equal(found["test"], np.arange(0, 1110, 5))


@pytest.mark.parametrize("classes", [True, False])
def test_the_rule_that_reports_tell_cuts_the_same_rows(classes: bool) -> None:
    y: Any = np.random.default_rng(3).integers(0, 7, 503) if classes else np.linspace(0, 1, 503)
    found = cut(y, Shares(), has_val=False, has_test=False)
    left = np.arange(len(y))
    assert all(name in RULE for name in ("test", "val", "default_rng(seed)", "int((i + 0.5) * n / k)"))
    for name in ("test", "val"):
        rows = np.random.default_rng(SEED).permutation(left)
        if classes:
            rows = rows[np.argsort(y[rows], kind="stable")]
        n, k = len(rows), len(found[name])
        taken = rows[[int((i + 0.5) * n / k) for i in range(k)]]
        assert sorted(taken) == found[name].tolist()
        left = np.setdiff1d(left, taken)
    assert left.tolist() == found["train"].tolist()


def test_numbers_are_shuffled() -> None:
    y = np.linspace(0, 1, 100).astype(np.float32)
    found = cut(y, Shares(), has_val=False, has_test=True)
    assert {name: len(rows) for name, rows in found.items()} == {"train": 80, "val": 20}
    assert 0.3 < y[found["val"]].mean() < 0.7


def test_the_note_claims_classes_only_where_there_are_some() -> None:
    found = cut(np.linspace(0, 1, 10).astype(np.float32), Shares(), has_val=False, has_test=False)
    assert "at random with seed 0" in told(found, by_class=False, has_val=False, has_test=False)
    assert "stratified by class with seed 0" in told(found, by_class=True, has_val=False, has_test=False)


@pytest.mark.parametrize("rows", [3, 4, 5, 6])
def test_few_rows_are_enough_for_all(rows: int) -> None:
    found = cut(np.zeros(rows, np.int64), Shares(), has_val=False, has_test=False)
    assert all(len(part) >= 1 for part in found.values())


def test_too_few_rows() -> None:
    with pytest.raises(BadDataset, match="too few"):
        cut(np.zeros(2, np.int64), Shares(), has_val=False, has_test=False)
