"""Groups of channels: changing places changes nothing, and the places found keep the most."""

from __future__ import annotations

import copy

import channel_networks as nets
import networks
import numpy as np
import pytest
import torch
from torch import fx, nn

from workers.nn.graph import trace
from workers.nn.grouping import assign, energies, fold, group, kept
from workers.nn.lines import Line, distance, lines, permute, sources


class Projected(nn.Module):
    """Residual, with a 1×1 convolution for a shortcut, and a 1-d head."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a, self.b, self.short = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(8, 16, 1, 2)
        self.norm, self.line, self.act = nn.GroupNorm(4, 16), nn.Conv1d(16, 12, 3), nn.PReLU(12)
        self.up, self.out = nn.ConvTranspose1d(12, 8, 4, 2, groups=2), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(self.norm(self.b(torch.relu(self.a(x))) + self.short(x)))
        return self.out(self.up(self.act(self.line(x.flatten(2)))).mean(2))


CASES = {
    "simple": (nets.SimpleCNN, (1, 28, 28)),
    "unfold": (nets.Unfold, (12,)),
    "option-a": (nets.OptionA, (3, 16, 16)),
    "mixed": (nets.Mixed, (3, 8, 8)),
    "attention": (nets.Attention, (5, 6)),
    "projected": (Projected, (1, 9, 9)),
    "vit": (networks.SmallVit, (3, 32, 32)),
    "resnet20": (lambda: networks.CifarResNet(3), (3, 32, 32)),
}


def traced(name) -> tuple[fx.GraphModule, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    make, row = CASES[name]
    module = make().eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    return fx.symbolic_trace(module), (torch.randn(3, *row),)


@pytest.mark.parametrize("name", CASES)
def test_channels_in_any_other_order_answer_the_same(name) -> None:
    whole, example = traced(name)
    found = lines(whole, trace(whole, example).channels(), [n for n, _ in whole.named_modules()])
    assert sum(map(len, found)) > 8
    rng = np.random.default_rng(0)
    other = copy.deepcopy(whole)
    permute(other, sources(whole, found, [rng.permutation(len(one)) for one in found]))
    changed = [n for n, p in whole.named_parameters() if not torch.equal(p, other.get_parameter(n))]
    assert len(changed) >= 3
    assert distance(whole, other, example) < 1e-5
    assert distance(whole, other, tuple(torch.randn(5, *t.shape[1:]) for t in example)) < 1e-5


@pytest.mark.parametrize("name", ["simple", "option-a", "projected", "unfold"])
def test_folding_keeps_more_and_the_network_as_it_was(name) -> None:
    whole, example = traced(name)
    convs = {n: m for n, m in whole.named_modules() if isinstance(m, nn.modules.conv._ConvNd) and m.groups == 1}
    names = [n for n, m in convs.items() if m.in_channels % 2 == 0 and m.out_channels % 2 == 0]
    folded = fold(whole, example, names, 2, 0)
    assert folded.check < 1e-5
    assert distance(whole, folded.module, example) == folded.check
    before, after = (sum(kept(energies(m.get_submodule(n)), 2) for n in names) for m in (whole, folded.module))
    assert after > 1.02 * before
    assert folded.moved


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_hidden_blocks_are_found(groups) -> None:
    rng = np.random.default_rng(groups)
    blocks = np.kron(np.eye(groups), np.ones((32 // groups, 64 // groups))) * rng.uniform(0.5, 1, (32, 64)) + 0.01
    energy = {"a": blocks[rng.permutation(32)][:, rng.permutation(64)] ** 2}
    found = [Line({("a", "out"): np.arange(32)[:, None]}), Line({("a", "in"): np.arange(64)[:, None]})]
    rows, columns = assign(energy, groups, found, 0)
    assert kept(energy["a"][np.ix_(rows, columns)], groups) == pytest.approx(kept(blocks**2, groups))


def test_a_line_on_both_sides_of_a_layer_never_gets_worse() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        energy = {"a": rng.random((8, 8))}
        found = [Line({("a", "out"): np.arange(8)[:, None], ("a", "in"): np.arange(8)[:, None]})]
        (places,) = assign(energy, 2, found, 0)
        assert kept(energy["a"][np.ix_(places, places)], 2) >= kept(energy["a"], 2) - 1e-12


@pytest.mark.parametrize("make", [nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d])
def test_a_grouped_layer_is_the_dense_one_with_the_rest_at_zero(make) -> None:
    layer = make(6, 4, 3, padding=1)
    dense = copy.deepcopy(layer)
    share = group(layer, 2)
    whole = dense.weight.detach().norm()
    weight = dense.weight.data
    if "Transpose" in make.__name__:
        weight = weight.transpose(0, 1)
    weight[:2, 3:] = 0
    weight[2:, :3] = 0
    assert share == pytest.approx(float(weight.norm() / whole))
    x = torch.randn(2, 6, *[5] * (dense.weight.dim() - 2))
    assert torch.allclose(layer(x), dense(x), atol=1e-6)


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="4 groups of 6 and 8"):
        group(nn.Conv2d(6, 8, 3), 4)


def test_channels_that_are_used_by_their_number_keep_their_places() -> None:
    class Numbered(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = self.a(x)
            return self.b(x).mean((2, 3)) * x[:, 1].mean((1, 2))[:, None]

    torch.manual_seed(0)
    whole = fx.symbolic_trace(Numbered().eval())
    x = (torch.randn(2, 2, 3, 3),)
    folded = fold(whole, x, ["a", "b"], 2, 0)
    assert distance(whole, folded.module, x) < 1e-5
    assert torch.equal(folded.module.a.bias[1], whole.a.bias[1])
    assert "output" in folded.pinned["b"]
