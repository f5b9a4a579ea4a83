"""prune: zeros that are counted where engines are built from, channels that are gone, and what is left alone."""

import channel_networks as nets
import pytest
import torch

from app.errors import Unprocessable
from workers.net import layer_sparsity, load


@pytest.fixture
def ready(bench, stripes):
    torch.manual_seed(0)
    bench.dataset("stripes", **stripes)
    bench.model("m", nets.SimpleCNN(), (1, 28, 28))
    return bench


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("l1_unstructured", {}),
        pytest.param("l1_unstructured", {"scope": "global"}, marks=pytest.mark.slow),
        pytest.param("random_unstructured", {"seed": 3}, marks=pytest.mark.slow),
    ],
)
def test_zeros_are_counted_in_the_onnx_and_promise_no_speed(ready, method, more) -> None:
    version, report = ready.run(kind="prune", model="m@1", method=method, amount=0.6, **more)
    assert report["counted_in"] == "onnx"
    assert report["sparsity"] == pytest.approx(0.6, abs=0.001)
    assert version.sparsity == pytest.approx(0.6, abs=0.001)
    assert any("faster" in note for note in report["notes"])
    assert version.metrics.quality is None
    assert version.details["masked"]
    assert not any(
        "_mask" in name
        for name in load(ready.apply(kind="prune", model="m@1", method=method).folder, version).module.state_dict()
    )


def test_zeros_stay_zero_through_finetuning_and_later_training(ready) -> None:
    first, report = ready.run(
        kind="prune", model="m@1", dataset="stripes@1", method="l1_unstructured", amount=0.7, finetune={"epochs": 1}
    )
    assert report["sparsity"] == pytest.approx(0.7, abs=0.001)
    assert report["quality_change"]["low"] <= report["quality_change"]["difference"] <= report["quality_change"]["high"]
    second, trained = ready.run(kind="train", model=first.ref, dataset="stripes@1", epochs=1)
    assert second.sparsity == pytest.approx(first.sparsity)
    assert any("masked" in note for note in trained["notes"])
    third, _ = ready.run(
        kind="prune", model=second.ref, dataset="stripes@1", method="channel", amount=0.5, finetune={"epochs": 1}
    )
    assert third.sparsity > 0.3


def test_structured_zeros_leave_the_classifier_alone(ready) -> None:
    version, report = ready.run(kind="prune", model="m@1", method="ln_structured", amount=0.5, norm=1)
    assert version.metrics.layer_sparsity["fc2"] == 0
    assert version.metrics.layer_sparsity["conv2"] == 0.5
    assert any("removes no channel" in note for note in report["notes"])
    assert any("fc2" in note for note in report["notes"])


def test_channels_go_and_what_is_stored_loads_smaller(ready) -> None:
    version, report = ready.run(
        kind="prune", model="m@1", dataset="stripes@1", method="channel", amount=0.5, finetune={"epochs": 4}
    )
    assert report["channels"]["conv2"] == {"before": 20, "after": 10}
    assert version.parameters == report["parameters"]["after"] < 6000
    assert version.macs == report["macs"]["after"] < report["macs"]["before"] / 2
    assert report["quality_after"] > 0.5
    assert version.sparsity == 0
    _, folder = ready.context({"kind": "prune"}).source(version.ref)
    module = load(folder, version).module
    assert module(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    assert module.conv2.weight.shape == (10, 5, 5, 5)
    again, _ = ready.run(kind="prune", model=version.ref, method="channel", amount=0.5)
    assert again.parameters < version.parameters / 2


def test_batch_norm_is_recalibrated(bench) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    some = lambda n: (rng.standard_normal((n, 3, 16, 16)).astype(np.float32), rng.integers(0, 10, n))  # noqa: E731
    bench.dataset("noise", train=some(64), val=some(16), test=some(16))
    bench.model("m", nets.OptionA(), (3, 16, 16))
    version, report = bench.run(kind="prune", model="m@1", dataset="noise@1", method="channel", amount=0.5)
    assert any("batch-norm" in note for note in report["notes"])
    assert "equal" in report["check"]
    _, folder = bench.context({"kind": "prune"}).source(version.ref)
    state = load(folder, version).module.state_dict()
    assert state["bn.running_mean"].any()


@pytest.mark.parametrize("method", ["l1_unstructured", "channel"])
def test_layers_that_do_not_exist_are_named_beside_some_that_do(ready, method) -> None:
    with pytest.raises(Unprocessable, match=r"'conv9'.*conv1"):
        ready.apply(kind="prune", model="m@1", method=method, layers=["conv9", "conv1"])


def test_only_named_layers_are_pruned(ready) -> None:
    version, _ = ready.run(kind="prune", model="m@1", method="l1_unstructured", amount=0.5, layers=["fc1"])
    assert version.metrics.layer_sparsity == {"conv1": 0, "conv2": 0, "fc1": 0.5, "fc2": 0}


@pytest.mark.parametrize("method", ["l1_unstructured", "channel"])
def test_an_amount_too_small_says_so(ready, method) -> None:
    version, report = ready.run(kind="prune", model="m@1", method=method, amount=1e-6)
    assert any("Nothing went" in note for note in report["notes"])
    assert version.parameters == 21840


def test_a_network_without_safe_channels_is_unchanged_and_says_so(bench) -> None:
    class Reshaped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 12), torch.nn.Linear(12, 3)

        def forward(self, x):
            x = self.a(x).reshape(-1, 3, 4)
            return self.b((x.transpose(1, 2) @ x).reshape(-1, 16)[:, :12])

    bench.model("m", Reshaped(), (4,))
    version, report = bench.run(kind="prune", model="m@1", method="channel", amount=0.5)
    assert any("left as it was" in note and "matmul" in note for note in report["notes"])
    assert version.parameters == report["parameters"]["before"]


def test_layer_sparsity_is_that_of_the_weights(ready) -> None:
    version, report = ready.run(kind="prune", model="m@1", method="l1_unstructured", amount=0.25)
    _, folder = ready.context({"kind": "prune"}).source(version.ref)
    assert layer_sparsity(load(folder, version).module) == version.metrics.layer_sparsity
    assert report["onnx"]["zeros"] == round(0.25 * 250) + round(0.25 * 5000) + 4000 + 125
