"""Accuracy, r2, their intervals, and paired differences."""

from pathlib import Path

import numpy as np
import pytest
import torch
from listening import made

from app.errors import BadDataset
from workers.nn.data import Data
from workers.nn.quality import Answers, answers, mcnemar, paired, quality, wilson


def test_wilson_agrees_with_the_book() -> None:
    # Newcombe 1998, table I: 81 of 263 → 0.2553 to 0.3662; 0 of 20 → 0 to 0.1611
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(20, 20)[1] == 1.0


def test_paired_difference_agrees_with_the_book() -> None:
    # Tango 1998, table: 12 and 2 of 50 that disagree → 0.0611 to 0.3447
    ours = np.array([True] * 36 + [True] * 12 + [False] * 2)
    theirs = np.array([True] * 36 + [False] * 12 + [True] * 2)
    truth = np.zeros(50)
    found = paired(Answers("accuracy", truth, right=ours), Answers("accuracy", truth, right=theirs))
    assert found["difference"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == pytest.approx((0.0611, 0.3447), abs=5e-5)
    assert found["p_value"] == pytest.approx(0.01294, abs=1e-4)
    same = paired(Answers("accuracy", truth, right=ours), Answers("accuracy", truth, right=ours))
    assert same["low"] <= 0 <= same["high"]


def test_mcnemar_is_symmetric_and_sure_of_large_differences() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(3, 9) == mcnemar(9, 3)
    assert mcnemar(700, 500) < 1e-6


def test_accuracy_over_a_split(bands: Data) -> None:
    truth = bands.test.labels()
    asked = iter(np.split(truth, [7, 14, 21, 28, 35]))

    def perfect(x: torch.Tensor) -> np.ndarray:
        return np.eye(3)[next(asked)]

    found = quality(answers(perfect, bands.test, 7), "bands@1")
    assert (found.value, found.high, found.n, found.split) == (1.0, 1.0, 40, "test")
    with pytest.raises(BadDataset):
        answers(lambda x: np.zeros((len(x) + 1, 3)), bands.test, 7)


def test_r2_with_its_bootstrap(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 2)).astype(np.float32)
    y = (x[:, 0] + 0.3 * rng.standard_normal(300)).astype(np.float32)
    data = made(tmp_path / "r", x, y, (100, 150))
    found = quality(answers(lambda x: x.numpy()[:, :1], data.test, 64), "r@1")
    assert found.name == "r2"
    assert found.low < found.value < found.high < 1
    assert found.low > 0.8


def test_the_interval_of_r2_holds_the_figure_of_a_model_that_learned_nothing() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((32, 256))
    values = np.full_like(truth, 0.5) + 0.05 * rng.standard_normal(truth.shape)
    found = quality(Answers("r2", truth, values=values), "r@1")
    assert found.low <= found.value <= found.high


def test_r2_of_targets_that_do_not_vary_lies_within_its_interval() -> None:
    found = quality(Answers("r2", np.ones(96), values=np.zeros(96)), "r@1")
    assert (found.low, found.value, found.high) == (0.0, 0.0, 0.0)
