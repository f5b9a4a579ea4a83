"""Weights that are fitted: as near to the original's outputs as these weights can come, never farther than before."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from listening import made
from torch import nn

from workers.nn.data import Rows
from workers.nn.factors import low_rank
from workers.nn.grouping import group
from workers.nn.refit import Pair, refit


def rows(*shape: int, n: int = 64) -> Rows:
    torch.manual_seed(1)
    return Rows(torch.randn(n, *shape), torch.zeros(n, dtype=torch.int64))


def test_what_the_weights_can_do_is_found() -> None:
    """Inputs that repeat themselves: the group that is left can stand in for the one that went."""
    torch.manual_seed(0)
    before = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, padding_mode="reflect"), nn.ReLU())
    after = copy.deepcopy(before)
    group(after[0], 2)
    half = rows(2, 8, 8)
    twice = Rows(torch.cat([half.x, half.x], 1), half.y)
    found = refit(after, before, [Pair("0", "0")], twice, "least_squares", "cpu")["0"]
    assert found["error_before"] > 0.1
    assert found["error_after"] < 1e-4
    assert torch.allclose(after(twice.x), before(twice.x), atol=0.05)


@pytest.mark.parametrize("how", ["least_squares", "scale"])
@pytest.mark.parametrize("make", [
    lambda: nn.Conv2d(4, 6, 3, padding="same"), lambda: nn.Conv1d(4, 6, 3, 2, bias=False),
    lambda: nn.ConvTranspose2d(4, 6, 3, 2), lambda: nn.Conv3d(4, 6, 3, dilation=2),
])  # fmt: skip
def test_it_never_gets_worse(make, how) -> None:
    torch.manual_seed(0)
    before = nn.Sequential(nn.Identity(), make())
    after = copy.deepcopy(before)
    group(after[1], 2)
    dims = before[1].weight.dim() - 2
    some = rows(4, *[8] * dims)
    found = refit(after, before, [Pair("1", "1")], some, how, "cpu")["1"]
    assert found["error_after"] <= found["error_before"] * 1.001
    gap = (after(some.x) - before(some.x)).square().mean() / before(some.x).var()
    assert gap.item() == pytest.approx(found["error_after"], rel=0.35)


def test_a_batch_norm_takes_up_the_mean() -> None:
    """So that layers after it are fitted to inputs as they will be."""
    torch.manual_seed(0)
    before = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)).eval()
    some = Rows(rows(4, 8, 8).x + 2, torch.zeros(64, dtype=torch.int64))
    before.train()(some.x)
    before.eval()
    after = copy.deepcopy(before)
    group(after[0], 2)
    refit(after, before, [Pair("0", "0", "1")], some, "scale", "cpu")
    gap = (after(some.x) - before(some.x)).mean((0, 2, 3)).abs()
    assert gap.max() < 0.02


def test_pruned_weights_stay_at_zero() -> None:
    torch.manual_seed(0)
    before = nn.Sequential(nn.Conv2d(4, 4, 3))
    after = copy.deepcopy(before)
    group(after[0], 2)
    with torch.no_grad():
        after[0].weight[torch.rand_like(after[0].weight) < 0.5] = 0
    zero = after[0].weight == 0
    found = refit(after, before, [Pair("0", "0")], rows(4, 8, 8), "least_squares", "cpu", keep_zeros=True)["0"]
    assert torch.equal(after[0].weight == 0, zero)
    assert found["error_after"] < found["error_before"]


def test_later_layers_make_up_for_earlier_ones() -> None:
    torch.manual_seed(0)
    before = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    after = copy.deepcopy(before)
    parts, _ = low_rank(after[0], (6, 6))
    after[0] = nn.Sequential(*parts.values())
    pairs = [Pair("0.1", "0"), Pair("2", "2")]
    found = refit(after, before, pairs, rows(16, n=400), "least_squares", "cpu")
    assert all(row["error_after"] < row["error_before"] for row in found.values())


def test_few_rows_do_not_spoil_it(tmp_path) -> None:
    """Fewer samples than unknowns: what is held back forbids a fit to noise."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    data = made(tmp_path / "few", rng.standard_normal((60, 32)).astype(np.float32), np.zeros(60, np.int64), (9, 20))
    before = nn.Sequential(nn.Linear(32, 8))
    after = copy.deepcopy(before)
    with torch.no_grad():
        after[0].weight.mul_(0.9)
    refit(after, before, [Pair("0", "0")], data.train, "least_squares", "cpu")
    x = torch.randn(1000, 32)
    assert (after(x) - before(x)).square().mean() < 0.05 * before(x).var()
