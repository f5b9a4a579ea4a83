"""Zeros in the weights: how many, which ones, and never all of a layer."""

import pytest
import torch
from torch import nn

from app.domain.specs import PruneSpec
from workers.nn.weights_pruning import fits_n_m, holds_n_m, zero


def spec(method, **more):
    return PruneSpec(model="m@1", method=method, **more)


def layers():
    torch.manual_seed(0)
    return {
        "a": nn.Linear(16, 10),
        "b": nn.Conv2d(8, 4, 3),
        "c": nn.ConvTranspose1d(8, 6, 3, groups=2),
        "d": nn.Conv2d(6, 6, 3, groups=6),
    }


def zeros(layer):
    return int((layer.weight == 0).sum())


@pytest.mark.parametrize("method", ["l1_unstructured", "random_unstructured"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_shares_add_up_and_what_is_gone_stays_gone(method, scope) -> None:
    net = layers()
    total = sum(layer.weight.numel() for layer in net.values())
    gone = {name: torch.zeros_like(layer.weight, dtype=torch.bool) for name, layer in net.items()}
    for amount in (0.2, 0.5, 0.7):
        found = zero(spec(method, scope=scope, seed=1), net, amount)
        assert sum(map(zeros, net.values())) == pytest.approx(amount * total, abs=2)
        for name, layer in net.items():
            assert not (gone[name] & (layer.weight != 0)).any()
            assert torch.equal(found.masks[f"{name}.weight"], layer.weight != 0)
            gone[name] = layer.weight == 0
    assert not found.spared


@pytest.mark.parametrize("method", ["l1_unstructured", "random_unstructured", "ln_structured"])
def test_no_layer_loses_its_last_weight(method) -> None:
    net = layers()
    found = zero(spec(method), net, 0.999)
    assert found.spared == list(net)
    assert all(layer.weight.any() for layer in net.values())


def test_no_layer_is_emptied_for_the_good_of_all() -> None:
    net = layers()
    nn.init.normal_(net["b"].weight, std=1e-6)
    found = zero(spec("l1_unstructured", scope="global"), net, 0.8)
    assert found.spared == ["b"]
    assert int((net["b"].weight != 0).sum()) == 1


@pytest.mark.parametrize("method", ["l1_unstructured", "ln_structured", "n_m"])
def test_a_given_importance_decides(method) -> None:
    net = {"a": nn.Linear(16, 10)}
    given = torch.arange(160.0).reshape(10, 16).flip(0, 1)  # the last rows and weights matter least
    zero(spec(method, importance="taylor"), net, 0.5, {"a.weight": given})
    kept = net["a"].weight != 0
    if method == "n_m":
        assert torch.equal(kept, torch.tensor([1, 1, 0, 0] * 4).bool().expand(10, 16))
    else:
        assert torch.equal(kept.any(1), torch.arange(10) < 5)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 2)])
def test_n_of_m_stay_along_the_input_axis(n, m) -> None:
    net = layers()
    before = {name: layer.weight.detach().clone() for name, layer in net.items()}
    found = zero(spec("n_m", n=n, m=m), net, (m - n) / m)
    unfit = {"d"} | ({"c"} if m == 8 else set())
    assert set(found.left_alone) == unfit
    assert all(str(m) in why for why in found.left_alone.values())
    assert set(found.masks) == {f"{name}.weight" for name in net if name not in unfit}
    for name, layer in net.items():
        if name in unfit:
            assert torch.equal(layer.weight, before[name])
            continue
        assert holds_n_m(layer, n, m)
        assert zeros(layer) == layer.weight.numel() * (m - n) // m
    rows, was = net["a"].weight.detach().reshape(-1, m), before["a"].reshape(-1, m)
    assert torch.allclose(rows.abs().sum(1), was.abs().sort(dim=1, descending=True).values[:, :n].sum(1))
    columns = net["b"].weight.detach()[0, :, 1, 1].reshape(-1, m)
    assert ((columns != 0).sum(1) == n).all()


def test_input_sizes_that_do_not_fit_are_told() -> None:
    assert fits_n_m(nn.Linear(10, 8), 4) == "its input size is 10, which 4 does not divide"
    assert (
        fits_n_m(nn.Conv2d(8, 8, 3, groups=4), 4)
        == "its input size in each of its 4 groups is 2, which 4 does not divide"
    )
    assert fits_n_m(nn.Linear(12, 8), 4) is None
    assert not holds_n_m(nn.Linear(8, 8), 2, 4)
