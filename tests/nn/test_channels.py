"""Channels that are really gone: whatever a network does with their number, the rest answers as with them at zero."""

from __future__ import annotations

import copy

import channel_networks as nets
import pytest
import torch
import torch_pruning
from torch import fx, nn

from workers.nn.channels import output_layers, thin
from workers.nn.graph import trace

FLAT = ("view", "size", "shape", "reshape", "tuple", "keyword", "computed", "flatten")
CASES = [(f"simple-{f}", lambda f=f: nets.SimpleCNN(f), (1, 28, 28)) for f in FLAT]
CASES += [(f"unfold-{h}", lambda h=h: nets.Unfold(h), (12,)) for h in ("view", "unflatten", "module")]
CASES += [
    ("option-a", nets.OptionA, (3, 16, 16)),
    ("mixed", nets.Mixed, (3, 8, 8)),
    ("attention", nets.Attention, (5, 6)),
]


def traced(make, seed=0) -> fx.GraphModule:
    """With batch-norm statistics that are not the initial ones, so that a mix-up of channels shows."""
    torch.manual_seed(seed)
    module = make().eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    return fx.symbolic_trace(module)


@pytest.mark.parametrize(
    "how", [{}, {"scope": "global"}, {"importance": "random", "seed": 3}, {"round_to": 4}], ids=str
)
@pytest.mark.parametrize(("make", "row"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_is_left_answers_as_with_the_channels_at_zero(make, row, how) -> None:
    whole = traced(make)
    before = copy.deepcopy(whole.state_dict())
    found = thin(whole, (torch.randn(2, *row),), 0.5, **how)
    assert found.refused is None
    assert found.removed > 0
    assert "equal" in found.check
    assert sum(p.numel() for p in found.module.parameters()) < sum(p.numel() for p in whole.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), whole.state_dict().values(), strict=True))
    # The whole network with what no longer fits set to zero, made here from the sizes alone where that is possible.
    for rows in (1, 5):
        assert found.module(torch.randn(rows, *row)).shape == whole(torch.randn(rows, *row)).shape
    if how.get("round_to") and make is not nets.Mixed:  # whose groups couple one layer's channel with two of another
        assert all(n % 4 == 0 or n == found.before[name] for name, n in found.after.items())
    found.module.train()
    found.module(torch.randn(4, *row)).sum().backward()
    assert all(p.grad is not None for p in found.module.parameters())


def test_simple_cnn_against_a_network_made_by_hand() -> None:
    whole = traced(nets.SimpleCNN)
    found = thin(whole, (torch.randn(2, 1, 28, 28),), 0.5).module
    kept = {}
    for name in ("conv1", "conv2", "fc1"):
        bias, left = whole.get_submodule(name).bias.tolist(), found.get_submodule(name).bias.tolist()
        kept[name] = torch.tensor([bias.index(b) for b in left])
    assert [len(k) for k in kept.values()] == [5, 10, 25]
    masked = copy.deepcopy(whole)
    with torch.no_grad():
        for name, left in kept.items():
            gone = torch.ones_like(masked.get_submodule(name).bias, dtype=torch.bool)
            gone[left] = False
            masked.get_submodule(name).weight[gone] = 0
            masked.get_submodule(name).bias[gone] = 0
        x = torch.randn(7, 1, 28, 28)
        assert torch.allclose(masked(x), found(x), atol=1e-6)
    norms = whole.conv2.weight.flatten(1).norm(dim=1)
    assert norms[kept["conv2"]].mean() > norms.mean()


def test_only_the_layers_that_are_named_lose_channels() -> None:
    found = thin(traced(nets.OptionA), (torch.randn(2, 3, 16, 16),), 0.5, layers=["blocks.1.conv1", "stem"])
    assert {n for n in found.before if found.before[n] != found.after[n]} == {"blocks.1.conv1"}
    assert "blocks.0.conv2" in found.left_alone["stem"]


def test_an_amount_below_one_channel_removes_nothing() -> None:
    found = thin(traced(nets.SimpleCNN), (torch.randn(2, 1, 28, 28),), 0.01)
    assert (found.removed, found.refused) == (0, None)


def test_almost_everything_may_go_and_a_channel_stays() -> None:
    found = thin(traced(nets.OptionA), (torch.randn(2, 3, 16, 16),), 0.99)
    assert found.removed
    assert min(found.after.values()) >= 1


class Data(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.a(x)
        return self.b(x) if x.sum() > 0 else self.b(-x)


class Scaled(nn.Module):
    """Depends on the number of channels by a number that no label shows."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = torch.relu(self.a(x))
        x = x * (x[0].numel() - 6)
        return self.c(torch.relu(self.b(x)))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.b(torch.relu(self.a(x)))))))


def test_a_network_that_cannot_be_followed_is_left_alone() -> None:
    module = Data()
    found = thin(module, (torch.randn(2, 4),), 0.5)
    assert found.module is module
    assert "cannot be followed" in found.refused


def test_a_group_that_something_else_depends_on_is_left_alone_and_the_rest_goes() -> None:
    found = thin(traced(Scaled), (torch.randn(2, 4),), 0.5)
    assert (found.after["a"], found.after["b"]) == (8, 4)
    assert "differ" in found.left_alone["a"]


def test_a_layer_that_is_called_twice_keeps_its_ends_equal() -> None:
    found = thin(traced(Shared), (torch.randn(2, 4),), 0.5)
    assert (found.after["a"], found.after["b"]) == (4, 4)
    assert "equal" in found.check


def test_layer_norm_over_the_channels_is_allowed_and_said() -> None:
    found = thin(
        fx.symbolic_trace(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2)).eval()),
        (torch.randn(2, 4),),
        0.5,
    )
    assert found.after == {"0": 4, "3": 2}
    assert "not comparable" in found.check


def test_groups_agree_with_torch_prunings_where_it_can_follow() -> None:
    whole = traced(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(24, 5)
        )
    )
    x = torch.randn(2, 3, 6, 6)
    ours = {frozenset(c.members) for c in trace(whole, (x,)).channels().values() if c.kept_by is None}
    graph = torch_pruning.DependencyGraph().build_dependency(whole, example_inputs=x)
    names = {m: n for n, m in whole.named_modules()}
    theirs = set()
    for layer in (whole.get_submodule("0"), whole.get_submodule("3")):
        group = graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, idxs=[0])
        theirs.add(frozenset(names[d.target.module] for d, _ in group if d.target.module in names))
    assert {frozenset(name for name, _ in members) for members in ours} == theirs


def test_output_layers() -> None:
    assert output_layers(traced(nets.SimpleCNN), (torch.randn(2, 1, 28, 28),)) == {"fc2"}
    assert output_layers(Data(), (torch.randn(2, 4),)) == {"b"}


class Sized(Scaled):
    def forward(self, x):
        x = torch.relu(self.a(x))
        return self.c(torch.relu(self.b(x * (x.size(1) - 6) / x.shape[-1])))


def test_a_number_that_was_read_off_a_size_stays_that_number() -> None:
    found = thin(traced(Sized), (torch.randn(2, 4),), 0.5)
    assert (found.after["a"], found.after["b"]) == (4, 4)
    assert "equal" in found.check


def test_layers_inside_a_block_of_torchs_own_that_stays_one_are_accounted_for() -> None:
    found = thin(traced(Keys), (torch.randn(2, 3, 8),), 0.5)
    assert {n for n in found.before if found.before[n] != found.after[n]} == {"b"}
    assert "MultiheadAttention uses it as one block: it attends to keys of its own" in found.left_alone["m.out_proj"]
    assert "MultiheadAttention" in found.left_alone["a"]


class Keys(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.m = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, add_bias_kv=True, batch_first=True)
        self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.a(x)
        return self.c(torch.relu(self.b(self.m(x, x, x)[0])))
