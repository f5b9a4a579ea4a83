"""prune by what the loss minds, n of m, sensitivity, dry runs and heads; and what is refused."""

from dataclasses import replace

import attention_networks
import channel_networks as nets
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from app.domain.specs import PruneSpec, Training
from app.errors import Unprocessable
from workers.net import load
from workers.nn.cuts import group_sizes
from workers.nn.saliency import taylor
from workers.nn.sensitivity import sensitivity
from workers.nn.weights_pruning import holds_n_m

PRUNE = {"kind": "prune", "model": "m@1", "dataset": "stripes@1"}


@pytest.fixture
def ready(bench, stripes):
    torch.manual_seed(0)
    make = bench.context
    bench.context = lambda *args, **more: replace(make(*args, **more), times=False)  # no latency is measured
    bench.dataset("stripes", **{split: (x[:128], y[:128]) for split, (x, y) in stripes.items()})
    bench.model("m", nets.SimpleCNN(), (1, 28, 28))
    return bench


def network(bench, version):
    _, folder = bench.context({"kind": "prune"}).source(version.ref)
    return load(folder, version).module


def opened(bench, ref="m@1"):
    ctx = bench.context({"kind": "prune", "model": ref, "dataset": "stripes@1"})
    ctx.report.close()  # nobody listens
    version, folder = ctx.source()
    net = load(folder, version)
    return net, ctx.dataset().fit_to(net.signature), ctx


def test_taylor_is_weight_times_gradient_over_training_rows(ready) -> None:
    net, data, ctx = opened(ready)
    found, line = taylor(net, data, Training(), ctx, seed=0)
    assert "128 training rows" in line
    assert set(found) == {name for name, _ in net.module.named_parameters()}
    assert not any(p.grad is not None for p in net.module.parameters())
    wanted = torch.zeros_like(net.module.fc1.weight)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    for start in range(0, 128, 32):
        x, y = data.train.take(order[start : start + 32])
        net.module.zero_grad()
        torch.nn.functional.cross_entropy(net.module(x), y).backward()
        wanted += (net.module.fc1.weight * net.module.fc1.weight.grad).abs().detach() / 4
    assert torch.allclose(found["fc1.weight"], wanted, rtol=1e-4, atol=1e-9)


def test_taylor_keeps_the_channels_that_count(bench) -> None:
    """Two of four channels have large weights, and are never on: by magnitude they would stay."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(4) * torch.tensor([9.0, 9.0, 1.0, 1.0]))
        net[0].bias.copy_(torch.tensor([-1e3, -1e3, 0.0, 0.0]))
        net[2].weight.copy_(torch.tensor([[9.0, 9.0, 2.0, -2.0], [9.0, 9.0, -2.0, 2.0]]))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 4)).astype(np.float32)
    y = (x[:, 3] > x[:, 2]).astype(np.int64)
    bench.dataset("stripes", train=(x, y), val=(x, y), test=(x, y))
    bench.model("m", net, (4,))
    for importance, kept in (("taylor", [2, 3]), ("magnitude", [0, 1])):
        version, report = bench.run(**PRUNE, method="channel", amount=0.5, importance=importance)
        weight = network(bench, version).get_parameter("0.weight")
        assert torch.equal(weight, net[0].weight.detach()[kept])
        assert any("gradient" in note for note in report["notes"]) == (importance == "taylor")


@pytest.mark.parametrize("method", ["n_m", "channel"])
def test_other_methods_take_taylor_too(ready, method) -> None:
    layers = ["fc1"] if method == "n_m" else ["conv2", "fc1"]
    outcome = ready.apply(**PRUNE, method=method, importance="taylor", layers=layers)
    if method == "channel":
        assert outcome.report["channels"]["conv2"]["after"] == 10
    else:
        assert outcome.report["layers"]["fc1"]["sparsity_after"] == 0.5
    assert any("Molchanov" in note for note in outcome.report["notes"])


def test_gradients_that_are_no_numbers_are_refused(bench) -> None:
    x = np.full((32, 4), np.nan, np.float32)
    y = np.zeros(32, np.int64)
    bench.dataset("stripes", train=(x, y), val=(x, y), test=(x, y))
    bench.model("m", torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)), (4,))
    with pytest.raises(Unprocessable, match=r"0\.weight") as caught:
        bench.apply(**PRUNE, method="channel", importance="taylor")
    assert caught.value.code == "gradients_not_finite"


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "random_unstructured", "importance": "taylor"},
        {"method": "l1_unstructured", "importance": "random"},
        {"method": "n_m", "n": 4, "m": 4},
        {"method": "n_m", "scope": "global"},
        {"method": "channel", "steps": 0},
        {"method": "channel", "schedule": "sudden"},
    ],
)
def test_what_contradicts_itself_is_refused(ready, fields) -> None:
    with pytest.raises(ValidationError):
        ready.apply(**PRUNE, **fields)


@pytest.mark.parametrize("fields", [{"importance": "taylor"}, {"sensitivity": True}, {"finetune": {"epochs": 1}}])
def test_what_needs_data_says_so(ready, fields) -> None:
    with pytest.raises(Unprocessable, match="no data set"):
        ready.apply(kind="prune", model="m@1", method="channel", **fields)


def test_n_of_m_holds_after_training_and_promises_little(ready) -> None:
    version, report = ready.run(**PRUNE, method="n_m", finetune={"epochs": 1})
    module = network(ready, version)
    assert report["pattern"] == {"n": 2, "m": 4, "layers": ["fc1"]}
    assert holds_n_m(module.fc1, 2, 4)
    assert set(report["left_alone"]) == {"conv1", "conv2", "fc2"}
    assert report["amount"] == 0.5
    assert report["finetune"]["teacher"] == "m@1"
    assert any("SPARSE_WEIGHTS" in note for note in report["notes"])
    assert any("conv2 (its input size is 10" in note for note in report["notes"])
    _, report = ready.run(kind="prune", model="m@1", method="n_m", n=3, m=7)
    assert report["notes"][0].startswith("Nothing went: no layer has an input size that is a multiple of 7.")
    assert report["sparsity"] == 0
    _, report = ready.run(**PRUNE, method="n_m", n=1, m=2)
    assert "conv2" in report["pattern"]["layers"]
    assert any("No hardware known" in note for note in report["notes"])


def test_layers_that_n_of_m_cannot_prune_are_refused_when_named(ready) -> None:
    with pytest.raises(Unprocessable, match=r"conv2 \(its input size is 10, which 4 does not divide\)") as caught:
        ready.apply(**PRUNE, method="n_m", layers=["conv2", "fc1"])
    assert caught.value.code == "layer_not_prunable"


def test_an_amount_that_leaves_next_to_nothing_leaves_something(ready) -> None:
    version, report = ready.run(**PRUNE, method="channel", amount=0.9999999)
    assert report["channels"]["conv1"] == {"before": 10, "after": 1}
    assert any("A single channel is left" in note for note in report["notes"])
    assert network(ready, version)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    report = ready.apply(**PRUNE, method="l1_unstructured", amount=0.99999, dry_run=True).report
    assert any("one weight was kept" in note and "conv1" in note for note in report["notes"])
    assert report["layers"]["fc2"].startswith("99.8 %")


@pytest.mark.parametrize("method", ["channel", "l1_unstructured", "ln_structured", "n_m"])
def test_a_dry_run_foretells_and_makes_nothing(ready, method) -> None:
    dry = ready.apply(kind="prune", model="m@1", method=method, dry_run=True)
    assert dry.folder is None
    assert dry.draft == {}
    version, real = ready.run(kind="prune", model="m@1", method=method)
    assert dry.report["parameters"] == real["parameters"]
    assert dry.report["macs"] == real["macs"]
    assert dry.report["sparsity"] == pytest.approx(version.sparsity)
    assert dry.report["dry_run"] is True
    assert list(dry.report["layers"]) == ["conv1", "conv2", "fc1", "fc2"]
    assert 0 <= dry.report["estimate_s"] < 600
    if method == "channel":
        assert dry.report["layers"]["conv2"] == "10 of 20 channels stay"
        assert dry.report["layers"]["fc2"].startswith("left alone: they are the network's outputs")


def test_a_dry_run_estimates_the_training(ready) -> None:
    spec = {"kind": "prune", "model": "m@1", "method": "channel", "dry_run": True, "steps": 3}
    report = ready.apply(**spec, finetune={"epochs": 100}).report
    assert any("name a data set" in note for note in report["notes"])
    known = ready.apply(**spec, dataset="stripes@1", finetune={"epochs": 100}).report
    assert known["estimate_s"] > 0.1
    assert any("33, 33, 34" in note for note in known["notes"])
    assert any("magnitude stands in" in n for n in ready.apply(**spec, importance="taylor").report["notes"])


@pytest.mark.parametrize("method", ["channel", "l1_unstructured"])
def test_sensitivity_is_a_table_a_figure_and_a_suggestion(ready, method) -> None:
    trained, _ = ready.run(kind="train", model="m@1", dataset="stripes@1", epochs=15, lr=0.1)
    spec = PRUNE | {"model": trained.ref, "method": method, "sensitivity": True}
    report = ready.apply(**spec, dry_run=True).report
    found = report["sensitivity"]
    layers = ["conv1", "conv2", "fc1"] + ([] if method == "channel" else ["fc2"])
    assert list(found["layers"]) == layers
    assert found["amounts"] == [0.25, 0.5, 0.75, 0.9]
    assert (found["rows"], found["split"], found["name"]) == (128, "val", "accuracy")
    for row in found["layers"].values():
        assert len(row["values"]) == 4
        assert row["change"]["low"] <= row["change"]["difference"] <= row["change"]["high"]
        assert row["change"]["difference"] == pytest.approx(row["values"][1] - found["whole"])
    curves = next(f for f in report["figures"] if f["title"].startswith("Sensitivity"))
    assert {series["name"] for series in curves["series"]} == set(layers)
    assert all(series["y"][0] == found["whole"] for series in curves["series"])
    assert found["suggestion"] in report["notes"]
    assert set(found["leave_alone"]) <= set(layers)
    once = ready.apply(**spec).report
    assert once["sensitivity"]["layers"] == found["layers"]
    assert once["parameters"]["before"] == report["parameters"]["before"]


@pytest.mark.parametrize("method", ["channel", "l1_unstructured", "ln_structured", "n_m"])
def test_sensitivity_leaves_the_network_as_it_was(ready, method) -> None:
    net, data, ctx = opened(ready)
    before = {name: tensor.clone() for name, tensor in net.module.state_dict().items()}
    found = sensitivity(net, PruneSpec(model="m@1", method=method), data, ctx, None)
    assert any(v != found["whole"] for row in found["layers"].values() for v in row["values"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.module.state_dict().items())


def test_layers_that_go_together_are_measured_together(bench) -> None:
    rng = np.random.default_rng(0)
    some = lambda n: (rng.standard_normal((n, 3, 16, 16)).astype(np.float32), rng.integers(0, 10, n))  # noqa: E731
    bench.dataset("stripes", train=some(64), val=some(32), test=some(16))
    bench.model("m", nets.OptionA(), (3, 16, 16))
    report = bench.apply(**PRUNE, method="channel", sensitivity=True, dry_run=True).report
    net, _, _ = opened(bench)
    names = {name for group in group_sizes(net, None) for name in group}
    table = report["sensitivity"]["layers"]
    told = [n for first, row in table.items() for n in (first, *row["with"])]
    assert sorted(told) == sorted(names)
    assert any(row["with"] for row in table.values())


def test_whole_heads_go_and_are_told_step_by_step(bench) -> None:
    net = attention_networks.Transformer(lambda width: attention_networks.Joined(width, 4, 4))
    bench.model("m", net, (5, 6))
    _, report = bench.run(kind="prune", model="m@1", method="channel", amount=0.5)
    assert len(report["heads"]) == 2
    assert all(heads == {"before": 4, "after": 2} for heads in report["heads"].values())
    _, steps = bench.run(kind="prune", model="m@1", method="channel", amount=0.5, steps=2)
    assert steps["heads"] == report["heads"]
    assert steps["channels"] == report["channels"]


def test_figures_show_before_and_after(ready) -> None:
    report = ready.apply(**PRUNE, method="channel", dry_run=True).report
    (bars,) = report["figures"]
    assert bars["kind"] == "bars"
    assert [s["name"] for s in bars["series"]] == ["before", "after"]
    assert dict(zip(bars["series"][1]["x"], bars["series"][1]["y"], strict=True))["conv2"] == 10
    report = ready.apply(**PRUNE, method="l1_unstructured", dry_run=True).report
    assert report["figures"][0]["series"][1]["y"] == pytest.approx([0.5] * 4, abs=0.01)


def test_a_dry_run_does_not_say_that_there_is_no_data_set(ready) -> None:
    outcome = ready.apply(**PRUNE, method="channel", importance="taylor", dry_run=True)
    assert [n for n in outcome.report["notes"] if "taylor" in n] == [
        "A dry run computes no gradients: magnitude stands in for taylor here."
    ]


class Words(torch.nn.Module):
    """Channels that an embedding alone gives."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(20, 16), torch.nn.Linear(16, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids).mean(1))


def test_the_width_of_an_embedding_is_told_as_channels(ready) -> None:
    ready.model("words", Words(), (6,), dtype="int64")
    report = ready.apply(kind="prune", model="words@1", method="channel", dry_run=True).report
    assert report["parameters"]["after"] == 20 * 8 + 8 * 4 + 4
    assert report["channels"]["embed"] == {"before": 16, "after": 8}
    assert not any("left as it was" in note for note in report["notes"])
