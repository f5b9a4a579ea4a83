"""Palettes: as few values as asked for, near the weights, through training and on disk."""

from __future__ import annotations

import itertools
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from workers.nn import palettes


def loss(values, centres):
    return float(((values[:, None] - centres[None]) ** 2).min(1).sum())


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_k_means_is_optimal_for_few_values(k) -> None:
    rng = np.random.default_rng(k)
    values = np.sort(rng.standard_normal(9))
    best = min(
        sum(((part - part.mean()) ** 2).sum() for part in np.split(values, cuts))
        for cuts in itertools.combinations(range(1, 9), k - 1)
    )
    assert loss(values, palettes.k_means(values, k)) == pytest.approx(best)


def test_few_or_equal_weights() -> None:
    assert palettes.k_means(np.asarray([1.0, 1.0]), 4).tolist() == [1.0]
    found = palettes.palette(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), 4, keep_zeros=True)
    assert found.weights().tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_zeros_stay_zero_when_they_were_pruned() -> None:
    torch.manual_seed(0)
    weight = torch.randn(20, 30) + 3
    weight[torch.rand(20, 30) < 0.5] = 0
    found = palettes.palette(weight, 4, keep_zeros=True)
    assert not found.weights()[weight == 0].any()
    assert len(torch.unique(found.weights())) == 4


def test_training_moves_the_palette_and_keeps_it_one() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    with torch.no_grad():
        net[0].weight[:, :2] = 0
    found = {n: palettes.palette(net.get_submodule(n).weight, 4, keep_zeros=True) for n in ("0", "2")}
    names = sorted(net.state_dict())
    x = torch.randn(64, 6)
    y = x.sum(1, keepdim=True)
    with palettes.trained_as(net, found):
        assert torch.equal(net[0].weight, found["0"].weights())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            value = (net(x) - y).square().mean()
            value.backward()
            optimizer.step()
            losses.append(value.item())
    assert losses[-1] < losses[0] / 2
    assert sorted(net.state_dict()) == names
    assert type(net[0]) is nn.Linear
    assert isinstance(net[0].weight, nn.Parameter)
    assert palettes.distinct(net[0]) <= 4
    assert not torch.equal(torch.unique(net[0].weight), torch.unique(found["0"].weights()))
    assert torch.equal(net[0].weight == 0, found["0"].weights() == 0)


def test_the_step_of_a_palette_is_the_mean_of_its_weights_steps() -> None:
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.0, 5.0]]))
    with palettes.trained_as(layer_in := nn.Sequential(layer), {"0": palettes.palette(layer.weight, 2)}):
        layer_in(torch.tensor([[1.0, 3.0, 7.0]])).sum().backward()
        (values,) = layer_in.parameters()
        assert values.grad.tolist() == [2.0, 7.0]


def as_documented(path, layer):
    """The weights of a layer, by the lines that the documentation gives."""
    text = (Path(__file__).parents[2] / "docs" / "optimizing.md").read_text()
    lines = text.partition("NumPy unpacks a layer so:\n\n")[2].partition("\n\n")[0]
    assert len(lines.splitlines()) == 4
    found = {"np": np}
    exec(textwrap.dedent(lines).replace("conv1", layer).replace('"packed.npz"', repr(str(path))), found)  # noqa: S102  our own lines
    return found["weight"]


@pytest.mark.parametrize("k", [2, 3, 16, 200])
def test_what_is_written_reads_back_and_is_small(tmp_path, k) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 30, 5), nn.BatchNorm2d(30), nn.Linear(9, 4))
    found = palettes.palette(net[0].weight, k)
    with torch.no_grad():
        net[0].weight.copy_(found.weights())
    size = palettes.write(tmp_path / "packed.npz", net, ["0"])
    assert np.array_equal(as_documented(tmp_path / "packed.npz", "0"), net[0].weight.detach().numpy())
    state = palettes.read(tmp_path / "packed.npz")
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(state[n], t) for n, t in net.state_dict().items())
    assert size == (tmp_path / "packed.npz").stat().st_size
    assert size < palettes.packed_bytes(6000, k) + 6000
