"""share: smaller networks that load, export and can be shared again; what cannot be shared is named, with figures."""

from __future__ import annotations

import channel_networks as nets
import networks
import numpy as np
import pytest
import torch
from torch import fx, nn

from app.domain import specs
from app.domain.records import Signature, Tensor
from app.errors import Unprocessable
from workers.net import Net, load, save
from workers.nn.export import to_onnx
from workers.nn.palettes import distinct, read
from workers.passes import Outcome


@pytest.fixture
def ready(bench, stripes):
    torch.manual_seed(0)
    bench.dataset("stripes", **stripes)
    bench.model("m", nets.SimpleCNN(), (1, 28, 28))
    return bench


@pytest.fixture
def share(bench, monkeypatch):
    """Runs the pass without measuring latency, which is no matter here and takes a second."""
    plain = bench.context

    def context(spec, *args):
        ctx = plain(spec, *args)
        ctx.times = False
        return ctx

    bench.context = context

    def run(**spec):
        return bench.run(kind="share", model=spec.pop("model", "m@1"), **spec)

    return run


def reopened(bench, version) -> Net:
    _, folder = bench.context({"kind": "share"}).source(version.ref)
    return load(folder, version)


def exported(bench, version, tmp_path, row) -> None:
    """What is stored answers in ONNX as in torch."""
    import onnxruntime

    net = reopened(bench, version)
    path = tmp_path / f"{version.name}.onnx"
    to_onnx(net.module, net.signature, net.example(), path)
    x = torch.randn(3, *row)
    (found,) = onnxruntime.InferenceSession(path).run(None, {net.signature.inputs[0].name: x.numpy()})
    with torch.no_grad():
        wanted = net.module(x)
    assert np.allclose(found, wanted if isinstance(wanted, torch.Tensor) else wanted["logits"], atol=1e-4)


@pytest.mark.parametrize(
    ("method", "more", "parameters"),
    [
        ("grouped_conv", {}, 19_340),
        ("grouped_conv", {"permute": False, "solve": "scale"}, 19_340),
        ("depthwise_separable", {}, 21_840 - 5000 + 10 * 25 + 200 - 250 + 25 + 10),
        ("low_rank", {"energy": 0.5}, None),
        ("cluster", {}, 21_840),
    ],
    ids=str,
)
def test_every_method_fits_finetunes_and_tells(ready, share, method, more, parameters) -> None:
    version, report = share(dataset="stripes@1", method=method, finetune={"epochs": 1, "lr": 0.01}, **more)
    assert version.parameters == report["parameters"]["after"]
    assert version.macs == report["macs"]["after"]
    assert parameters in (None, version.parameters)
    if method != "cluster":
        assert version.parameters < report["parameters"]["before"]
        assert version.macs < report["macs"]["before"]
        fits = [row["fit"] for row in report["layers"].values()]
        assert all(fit["error_after"] <= fit["error_before"] * 1.01 for fit in fits)
        assert all(0 < row["kept_norm"] < 1 for row in report["layers"].values())
    assert report["quality_change"]["low"] <= report["quality_change"]["difference"] <= report["quality_change"]["high"]
    assert report["finetune"]["teacher"] == "m@1"
    assert {"before", "shared", "finetuned"} <= report["validation"].keys()
    assert report["figures"][0]["series"][0]["x"] == list(report["layers"])
    assert reopened(ready, version).module(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    dry = ready.apply(kind="share", model="m@1", dataset="stripes@1", method=method, dry_run=True,
                      finetune={"epochs": 1}, **more)  # fmt: skip
    assert isinstance(dry, Outcome)
    assert dry.folder is None
    assert (dry.report["parameters"], dry.report["macs"]) == (report["parameters"], report["macs"])
    assert dry.report["layers"].keys() == report["layers"].keys() | report["left_alone"].keys()
    assert dry.report["dry_run"] is True
    assert dry.report["estimate_s"] > 0


def test_permutation_is_compared_with_none(ready, bench) -> None:
    version, report = bench.run(kind="share", model="m@1", dataset="stripes@1", method="grouped_conv")
    assert report["total"]["kept_norm"] > report["total"]["kept_norm_unpermuted"]
    assert report["layers"]["conv2"]["permuted"] == ["in", "out"]
    assert "equal" in report["total"]["check"]
    assert {"before", "shared", "shared_unpermuted"} == report["validation"].keys()
    assert report["left_alone"] == {"conv1": "2 groups do not divide its 1 → 10 channels"}
    assert [s["name"] for s in report["figures"][0]["series"]] == ["channels permuted", "as they lie"]
    assert report["eager_speed"]["ratio"] > 0
    assert any("not speed" in note for note in report["notes"])
    assert version.details["shared"] == {"method": "grouped_conv", "layers": ["conv2"]}


def test_palettes_stay_through_finetuning_and_their_size_is_that_of_a_file(ready, share) -> None:
    version, report = share(dataset="stripes@1", method="cluster", clusters=8, finetune={"epochs": 1, "lr": 0.01})
    net = reopened(ready, version)
    layers = {n: distinct(net.module.get_submodule(n)) for n in ("conv1", "conv2", "fc1", "fc2")}
    assert max(layers.values()) <= 8
    assert version.details["shared"]["values"] == layers
    _, folder = ready.context({"kind": "share"}).source(version.ref)
    assert version.files.keys() == {"architecture.json", "model.safetensors", "packed.npz"}
    assert (folder / "packed.npz").stat().st_size == version.details["shared"]["bytes"]
    state, packed = net.module.state_dict(), read(folder / "packed.npz")
    assert packed.keys() == state.keys()
    assert all(torch.equal(packed[name], value) for name, value in state.items())
    assert report["notes"][0] == "4 of 4 convolution and linear layers changed; 100.0 % of their weights were in those."
    size = report["size"]
    assert 21_750 * 3 / 8 < size["packed"] == version.details["shared"]["bytes"] < size["before_deflated"] / 4
    assert size["before"] == ready.catalog.version("m", 1).bytes - len(_architecture(ready))
    assert any("size, not speed" in note for note in report["notes"])


def _architecture(bench) -> bytes:
    _, folder = bench.context({"kind": "share"}).source("m@1")
    return (folder / "architecture.json").read_bytes()


def test_pruned_weights_stay_zero_whatever_is_shared(ready, share) -> None:
    module = nets.SimpleCNN()
    for layer in (module.conv2, module.fc1):
        layer.weight.data[torch.rand_like(layer.weight) < 0.6] = 0
    ready.model("m", module, (1, 28, 28), details={"masked": True})
    for spec in ({"method": "cluster", "clusters": 4}, {"method": "grouped_conv", "dataset": "stripes@1"}):
        version, _ = share(model="m@2", **spec)
        layers = version.metrics.layer_sparsity
        assert layers["conv2"] > 0.5
        assert layers["fc1"] > 0.55
        assert version.details["masked"]


class Wide(nn.Module):
    """Transposed, 1-d and grouped convolutions."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 12, 5), nn.Conv1d(12, 12, 3, groups=3)
        self.c, self.d = nn.Conv1d(12, 16, 3), nn.ConvTranspose1d(16, 8, 4, 2)
        self.e = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x))))))
        return self.e(torch.relu(self.d(x)).mean(2))


ROWS = {
    "option-a": (nets.OptionA, (3, 16, 16), {"grouped_conv", "depthwise_separable", "low_rank"}),
    "mixed": (nets.Mixed, (3, 8, 8), {"grouped_conv", "depthwise_separable", "low_rank"}),
    "wide": (Wide, (3, 20), {"grouped_conv", "depthwise_separable", "low_rank"}),
    "mlp": (lambda: nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32)), (12,), {"low_rank"}),
    "vit": (networks.SmallVit, (3, 32, 32), {"low_rank", "depthwise_separable"}),
}


@pytest.mark.parametrize("name", ROWS)
def test_networks_of_every_kind_without_data(bench, share, tmp_path, name) -> None:
    torch.manual_seed(0)
    make, row, can = ROWS[name]
    bench.model("m", make(), row)
    for method in ("grouped_conv", "depthwise_separable", "low_rank"):
        if method not in can:
            with pytest.raises(Unprocessable) as caught:
                bench.apply(kind="share", model="m@1", method=method)
            assert caught.value.code in ("nothing_to_share", "bad_groups")
            continue
        version, report = share(method=method, energy=0.3)
        assert version.parameters < report["parameters"]["before"]
        assert reopened(bench, version).module(torch.randn(2, *row)).shape[0] == 2
    if name == "wide":
        exported(bench, version, tmp_path, row)
    version, _ = share(model=version.ref, method="cluster")
    assert reopened(bench, version).module(torch.randn(2, *row)).isfinite().all()


def test_a_shared_network_can_be_shared_again_and_pruned(ready, share, tmp_path) -> None:
    first, _ = share(method="low_rank", energy=0.4)
    assert {"conv2.down", "conv2.core", "conv2.up"} <= {n for n, _ in reopened(ready, first).module.named_modules()}
    second, report = share(model=first.ref, method="cluster")
    assert "conv2.core" in report["layers"]
    third, _ = ready.run(kind="prune", model=second.ref, method="channel", amount=0.3)
    assert third.parameters < first.parameters
    exported(ready, third, tmp_path, (1, 28, 28))


def test_a_grouped_network_exports_as_it_is(ready, share, tmp_path) -> None:
    version, report = share(method="grouped_conv", groups=5)
    assert reopened(ready, version).module.conv2.groups == 5
    assert any("Without a data set" in note for note in report["notes"])
    exported(ready, version, tmp_path, (1, 28, 28))
    with pytest.raises(Unprocessable, match="5 groups already"):
        share(model=version.ref, method="grouped_conv", groups=2)


def test_a_network_of_transformers(bench, share) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 4}
    config |= {"downsample_in_first_stage": False}
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**config)).eval()
    from workers.load import architecture

    said = {"library": "transformers", "name": "ResNetForImageClassification", "kwargs": config}
    signature = Signature(inputs=(Tensor(name="pixel_values", shape=(-1, 3, 32, 32)),))
    built = architecture.build(said, model.state_dict(), signature)
    save(built.net, bench.folder / "hf")
    bench.publish("m", "torch", bench.folder / "hf", built.net.signature, trainable=True)
    before = built.net.module(torch.ones(1, 3, 32, 32))
    version, report = share(method="grouped_conv")
    assert version.macs < report["macs"]["before"]
    assert "equal" in report["total"]["check"]
    after = reopened(bench, version).module(torch.ones(1, 3, 32, 32))
    assert torch.utils._pytree.tree_leaves(after)[0].shape == torch.utils._pytree.tree_leaves(before)[0].shape


@pytest.mark.parametrize(
    ("spec", "code", "said"),
    [
        (
            {"method": "grouped_conv", "groups": 3, "layers": ["conv2"]},
            "bad_groups",
            "3 groups do not divide its 10 → 20",
        ),
        ({"method": "grouped_conv", "groups": 64}, "bad_groups", "64 groups do not divide its 10 → 20"),
        ({"method": "grouped_conv", "layers": ["conv9"]}, "unknown_layer", "'conv9'; it has conv1, conv2"),
        ({"method": "grouped_conv", "layers": ["fc1"]}, "unknown_layer", "no convolution 'fc1'"),
        ({"method": "low_rank", "energy": 1.0}, "nothing_to_share", "multiply-accumulates"),
        ({"method": "low_rank", "layers": ["nope"]}, "unknown_layer", "'nope'"),
        ({"method": "cluster", "layers": ["nope"]}, "unknown_layer", "'nope'"),
        ({"method": "depthwise_separable", "layers": ["fc1"]}, "unknown_layer", "'fc1'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_what_cannot_be_done_says_why(ready, spec, code, said, dry_run) -> None:
    if dry_run and "layers" not in spec:  # it tells what can be done to each layer: nothing is an answer, too
        found = ready.apply(kind="share", model="m@1", dry_run=True, **spec).report
        assert found["parameters"]["after"] == found["parameters"]["before"]
        assert any(said in row["left_alone"] for row in found["layers"].values())
        assert "can be done to no layer" in " ".join(found["notes"])
        return
    with pytest.raises(Unprocessable) as caught:
        ready.apply(kind="share", model="m@1", dry_run=dry_run, **spec)
    assert caught.value.code == code
    assert said in caught.value.detail
    assert caught.value.hint


def test_layers_within_a_block_are_left_alone_and_named_ones_refused(bench, share) -> None:
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    bench.model("m", fx.symbolic_trace(nn.Sequential(nn.Linear(40, 8), block, nn.Linear(8, 2)).eval()), (3, 40))
    _, report = share(method="low_rank", energy=0.2)
    assert "0" in report["layers"]
    assert "one block" in report["left_alone"]["1.linear1"]
    with pytest.raises(Unprocessable, match="one block") as caught:
        share(method="low_rank", layers=["1.linear1"])
    assert caught.value.code == "not_shareable"


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "magic"},
        {"method": "grouped_conv", "groups": 1},
        {"method": "low_rank", "energy": 0},
        {"method": "low_rank", "energy": 1.5},
        {"method": "cluster", "clusters": 1},
        {"method": "cluster", "clusters": 257},
        {"method": "cluster", "layers": []},
    ],
    ids=str,
)
def test_bad_specs_are_refused(wrong) -> None:
    with pytest.raises(ValueError):
        specs.SUBMITTABLE.validate_python({"kind": "share", "model": "m", **wrong})
