"""Data sets: memory-mapped, in batches, checked against the model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from listening import made

from app.domain.records import Signature, Tensor
from app.errors import BadDataset
from workers.nn.data import Data


def test_batches_hold_every_row_once_and_shuffle_by_seed(bands: Data) -> None:
    first = [x for x, _ in bands.train.batches(16, torch.Generator().manual_seed(3))]
    again = [x for x, _ in bands.train.batches(16, torch.Generator().manual_seed(3))]
    assert [len(x) for x in first] == [16] * 6 + [1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    whole = torch.cat([x for x, _ in bands.train.batches(50)])
    assert torch.equal(whole.sort(0).values, torch.cat(first).sort(0).values)


def test_a_lone_last_row_joins_the_batch_before_it(bands: Data) -> None:
    assert [len(x) for x, _ in bands.train.batches(16, lone_row=False)] == [16] * 5 + [17]
    assert [len(x) for x, _ in bands.train.batches(1, lone_row=False)] == [1] * 97


def test_samples_are_the_same_for_a_seed(bands: Data) -> None:
    assert np.array_equal(bands.test.sample(9, 1).labels(), bands.test.sample(9, 1).labels())
    assert len(bands.test.sample(9, 1)) == 9
    assert bands.test.sample(1000, 1) is bands.test


def test_rows_are_cast_to_what_the_model_takes(tmp_path: Path) -> None:
    data = made(tmp_path / "d", np.arange(60, dtype=np.uint8).reshape(20, 3), np.zeros(20, np.float32), (10, 15))
    fitted = data.fit_to(Signature(inputs=(Tensor(name="x", shape=(-1, 3)),)))
    assert fitted.train.take(torch.arange(2))[0].dtype == torch.float32
    assert data.train.take(torch.arange(2))[0].dtype == torch.uint8


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ((Tensor(name="x", shape=(-1, 1, 5, 4)),), "[1, 4, 4]"),
        ((Tensor(name="x", shape=(-1, 16)),), "[1, 4, 4]"),
        ((Tensor(name="x", shape=(-1, 1, 4, 4), dtype="int64"),), "float32"),
        ((Tensor(name="a", shape=(-1, 1, 4, 4)), Tensor(name="b", shape=(-1, 2))), "2 inputs"),
    ],
)
def test_data_that_do_not_fit_are_refused_with_both_shapes(bands: Data, inputs: tuple[Tensor, ...], said: str) -> None:
    with pytest.raises(BadDataset) as refused:
        bands.fit_to(Signature(inputs=inputs))
    assert said in refused.value.detail


def test_a_model_of_one_row_at_a_time_takes_rows(bands: Data) -> None:
    bands.fit_to(Signature(inputs=(Tensor(name="x", shape=(1, 1, 4, 4), batch_axis=None),)))
