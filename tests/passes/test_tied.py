"""Layers that share their weights: what is done to one is done to all, once, and they go on sharing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from workers.net import Net, load
from workers.nn import qat
from workers.nn.palettes import distinct

FINETUNE = {"epochs": 1, "lr": 0.05}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 5, 4)
        self.one, self.two = nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3)
        self.two.weight = self.one.weight
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.two(self.one(self.first(x)))).flatten(1))


@pytest.fixture
def tied(bench: Any, stripes: Any) -> Any:
    torch.manual_seed(0)
    bench.dataset("stripes", **stripes)
    bench.model("m", Tied(), (1, 28, 28))
    plain = bench.context

    def context(*args: Any, **more: Any) -> Any:
        ctx = plain(*args, **more)
        ctx.times = False
        return ctx

    bench.context = context
    return bench


def run(bench: Any, **spec: Any) -> tuple[Net, dict[str, Any]]:
    version, report = bench.run(model="m@1", dataset="stripes@1", **spec)
    _, folder = bench.context({"kind": "share"}).source(version.ref)
    net = load(folder, version)
    assert net.module.get_submodule("one").weight is net.module.get_submodule("two").weight
    return net, report


def test_a_palette_is_trained_for_both(tied: Any) -> None:
    net, report = run(tied, kind="share", method="cluster", clusters=8, finetune=FINETUNE)
    assert distinct(net.module.get_submodule("two")) <= 8
    assert report["left_alone"] == {"two": "its weights are those of another layer"}
    assert report["parameters"]["before"] == report["parameters"]["after"]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_random_weights_go_once(tied: Any, scope: str) -> None:
    net, _ = run(tied, kind="prune", method="random_unstructured", amount=0.5, scope=scope)
    weights = {id(p): p for p in net.module.parameters() if p.dim() > 1}.values()
    assert sum(int((w == 0).sum()) for w in weights) == pytest.approx(sum(w.numel() for w in weights) / 2, abs=3)


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_the_second_name_prunes_too_and_its_zeros_stay(tied: Any, importance: str) -> None:
    net, report = run(
        tied, kind="prune", method="l1_unstructured", layers=["two"], importance=importance, finetune=FINETUNE
    )
    weight = net.module.get_submodule("two").weight
    assert int((weight == 0).sum()) == weight.numel() // 2
    assert report["layers"]["two"]["sparsity_after"] == 0.5


def test_masks_of_training_that_rounds_are_found_by_either_name() -> None:
    rounding = qat.aware(Tied(), [torch.randn(2, 1, 28, 28)], signed=False)
    known = dict(rounding.named_parameters(remove_duplicate=False))
    masks = qat.masks({"two.weight": torch.ones(6, 6, 3, 3)}, rounding)
    assert masks.keys() <= known.keys()
    assert known[next(iter(masks))] is rounding.one.parametrizations.weight.original
