"""One layer as several: exact at full rank, the best there is below it, and only where it pays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import fx, nn

from workers.nn import factors, ranks
from workers.nn.sites import exchange, sites

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (3, 6)),
    "tokens": (lambda: nn.Linear(6, 5, bias=False), (3, 4, 6)),
    "conv": (lambda: nn.Conv2d(6, 5, 3, 2, 1), (3, 6, 9, 9)),
    "same": (lambda: nn.Conv2d(6, 5, (3, 5), padding="same", padding_mode="circular", dilation=2), (3, 6, 9, 9)),
    "pointwise": (lambda: nn.Conv2d(6, 5, 1, 2), (3, 6, 9, 9)),
    "padded pointwise": (lambda: nn.Conv2d(6, 5, 1, 1, 1), (3, 6, 9, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 5, 3, 2, 1, 1), (3, 6, 9, 9)),
    "transposed pointwise": (lambda: nn.ConvTranspose2d(6, 5, 1, 2), (3, 6, 9, 9)),
    "1-d": (lambda: nn.Conv1d(6, 5, 4), (3, 6, 9)),
    "3-d": (lambda: nn.Conv3d(4, 5, 3, bias=False), (2, 4, 5, 5, 5)),
    "one channel": (lambda: nn.Conv2d(1, 8, 3), (2, 1, 9, 9)),
}


def through(parts, x):
    for layer in parts.values():
        x = layer(x)
    return x


@pytest.mark.parametrize("name", LAYERS)
def test_at_full_rank_nothing_is_lost(name) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    graph = fx.symbolic_trace(nn.Sequential(layer).eval())
    plan = factors.plan(sites(graph, (x,))[0]["0"], "energy", 1.0)
    parts, kept = factors.low_rank(layer, plan.rank)
    assert kept == pytest.approx(1)
    assert torch.allclose(through(parts, x), layer(x), atol=1e-5)
    assert plan.weights[1] == sum(p.weight.numel() for p in parts.values())
    exchange(graph, "0", parts)
    graph.recompile()
    assert torch.allclose(graph(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("name", ["conv", "same", "1-d", "3-d", "one channel"])
def test_separable_is_the_best_of_rank_one_for_every_input_channel(name) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    parts, kept = factors.separable(layer)
    assert through(parts, x).shape == layer(x).shape
    kernels = layer.weight.detach().double().flatten(2).transpose(0, 1)
    values = torch.linalg.svdvals(kernels)
    assert kept**2 == pytest.approx(float(values[:, 0].square().sum() / values.square().sum()))
    made = parts["depthwise"].weight.flatten(1)[:, None, :] * parts["pointwise"].weight.flatten(1).T[:, :, None]
    lost = float((made.detach() - kernels).norm() / kernels.norm())
    assert lost**2 == pytest.approx(1 - kept**2, abs=1e-5)


def test_a_low_rank_layer_is_factored_without_loss_and_any_other_only_where_it_pays() -> None:
    torch.manual_seed(0)
    thin, full = nn.Linear(40, 30), nn.Linear(40, 30)
    with torch.no_grad():
        thin.weight.copy_(torch.randn(30, 3) @ torch.randn(3, 40))
    found, _ = sites(
        fx.symbolic_trace(nn.Sequential(nn.Linear(9, 40), thin, nn.Linear(30, 40), full)), (torch.randn(2, 9),)
    )
    good, bad = (factors.plan(found[n], "energy", 0.999) for n in ("1", "3"))
    assert (good.rank, good.pays, bad.pays) == ((3, 3), True, False)
    assert good.macs == (1200, 210)
    parts, _ = factors.low_rank(thin, good.rank)
    x = torch.randn(5, 40)
    assert torch.allclose(through(parts, x), thin(x), atol=1e-4)


@pytest.mark.parametrize("rank", [0, 1, 4, 12])
def test_vbmf_tells_signal_from_noise(rank) -> None:
    rng = np.random.default_rng(rank)
    matrix = rng.standard_normal((60, rank)) @ rng.standard_normal((rank, 200)) + 0.5 * rng.standard_normal((60, 200))
    for seen in (matrix, matrix.T, 1e-4 * matrix):
        assert ranks.by_vbmf(ranks.singular_values(seen), *seen.shape) == rank


def test_ranks_of_degenerate_matrices() -> None:
    assert ranks.by_vbmf(np.zeros(3), 3, 5) == 0
    assert ranks.by_energy(np.zeros(3), 0.9) == 1
    assert ranks.by_energy(np.asarray([2.0, 1.0, 0.0]), 1.0) == 2
    assert ranks.by_energy(np.asarray([2.0, 1.0]), 0.8) == 1
    for shape in ((1, 1), (1, 9), (2, 2)):
        values = ranks.singular_values(np.ones(shape))
        assert 0 <= ranks.by_vbmf(values, *shape) <= 1
