"""quantize over the bench: networks of many kinds, the guard, bad data; and what convert makes of them in int8."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from networks import BasicBlock, SmallVit, TwoInputs
from onnx import TensorProto, helper, numpy_helper
from passes.conftest import Bench
from torch import nn

from app import runtimes
from app.domain.records import Signature, Tensor, Version
from app.errors import Conflict, Problem, Unprocessable
from app.runtimes import LoadOptions
from workers.nn import qat
from workers.nn.verdict import judge

ROWS, CLASSES = 96, 3
INT8: dict[str, Any] = {"precision": "int8", "max_batch": 4}


class TinyCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8 * 4 * 4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.conv1(x)))
        return self.fc(torch.relu(self.conv2(x)).flatten(1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = BasicBlock(8, 16, 2, "A")
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.block(torch.relu(self.stem(x))).mean((2, 3)))


def trained(module: nn.Module, x: np.ndarray, y: np.ndarray, steps: int = 30) -> nn.Module:
    """Enough that its answers are no accident."""
    torch.manual_seed(0)
    optimizer, given = torch.optim.Adam(module.parameters(), 0.01), torch.from_numpy(x)
    for _ in range(steps):
        said = module.train()(given)
        loss = nn.functional.mse_loss(said, torch.from_numpy(y)) if y.dtype == np.float32 else None
        loss = nn.functional.cross_entropy(said, torch.from_numpy(y)) if loss is None else loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval()


def blobs(row: tuple[int, ...], n: int = ROWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Classes that differ in how bright a part of the row is."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, n)
    x = rng.standard_normal((n, *row)).astype(np.float32)
    flat = x.reshape(n, -1)
    part = flat.shape[1] // CLASSES
    for i, c in enumerate(y):
        flat[i, c * part : (c + 1) * part] += 1.0
    return flat.reshape(n, *row), y.astype(np.int64)


@pytest.fixture
def ready(bench: Bench) -> Any:
    """Publishes a trained network and its data."""

    def make(module: nn.Module, row: tuple[int, ...] = (3, 8, 8), **more: Any) -> Version:
        splits = {name: blobs(row, seed=i) for i, name in enumerate(("train", "val", "test"))}
        bench.dataset("blobs", **splits)
        return bench.model("net", trained(module, *splits["train"]), row, **more)

    return make


@pytest.fixture
def filed(bench: Bench, tmp_path: Path) -> Version:
    """The small CNN as a file of opset 17, and its data: nothing needs to be exported."""
    bench.dataset("blobs", **{name: blobs((3, 8, 8), 40, seed=i) for i, name in enumerate(("train", "val", "test"))})
    return bench.file(
        "net", "onnx", tmp_path / "m.onnx", onnx_cnn(tmp_path / "m.onnx", rows=None, opset=17, last=False)
    )


def asked(bench: Bench, version: Version, x: np.ndarray) -> np.ndarray:
    """The answers of a version of format onnx, or of an engine."""
    folder = bench.folder / f"loaded-{version.version}"
    for path in version.files:
        bench.artifacts.fetch(f"{version.folder}/{path}", folder / path)
    name = "onnxruntime" if version.format == "onnx" else version.format
    options = LoadOptions(1, precision=str(version.details.get("precision", "fp32")))
    engine = runtimes.get(name).load(folder, version.signature, options)
    try:
        return engine.infer({version.signature.inputs[0].name: x})[version.signature.outputs[0].name]
    finally:
        engine.close()


def graph_of(bench: Bench, version: Version) -> Any:
    path = bench.artifacts.fetch(f"{version.folder}/model.onnx", bench.folder / f"read-{version.version}.onnx")
    return onnx.load(str(path))


def test_a_cnn_becomes_int8_and_engines_of_it_run_in_int8(bench: Bench, ready: Any) -> None:
    ready(TinyCnn())
    quantized, report = bench.run(
        kind="quantize", model="net@1", dataset="blobs@1", target="openvino", calibration_samples=40, seed=3
    )
    assert (quantized.format, quantized.parent, quantized.trainable) == ("onnx", "net@1", False)
    assert report["calibration"] == {"rows": 40, "split": "train", "seed": 3, "dataset": "blobs@1"}
    assert report["quantized_layers"] == ["conv1", "conv2", "fc"]
    assert report["bytes"]["after"] < report["bytes"]["before"]
    assert report["quality_change"]["n"] == ROWS
    assert abs(report["quality_change"]["difference"]) <= 0.05
    assert quantized.details["quantized"]["target"] == "openvino"
    assert quantized.metrics.quality is not None
    assert quantized.metrics.quality.split == "test"
    onnx.checker.check_model(graph_of(bench, quantized), full_check=True)

    for target in ("openvino", "onnxruntime"):
        engine, told = bench.run(
            kind="convert", model=quantized.ref, dataset="blobs@1", target=target, precision="int8", max_batch=4
        )
        assert engine.details["precision"] == "int8"
        assert engine.details["quantized"]["mode"] == "ptq"
        # ONNX Runtime keeps a last layer in float whose output is.
        wanted = ["int8"] * 3 if target == "openvino" else ["f32", "int8", "int8"]
        assert sorted(told["layers"].values()) == wanted, told["layers"]
        assert told["parity"]["agreed"] >= 0.9
        assert told["quality_change"]["n"] == ROWS
        assert told["parent_quality"]["value"] == report["quality_before"]
        x = blobs((3, 8, 8), 4, seed=9)[0]
        assert np.abs(asked(bench, engine, x) - asked(bench, quantized, x)).max() < 0.2


def test_the_same_seed_gives_the_same_file(bench: Bench, filed: Version) -> None:
    spec = {"kind": "quantize", "model": "net@1", "dataset": "blobs@1", "target": "onnxruntime"}
    first, second, other = (
        bench.run(**spec, calibration_samples=16, seed=seed)[0].files["model.onnx"] for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


def test_scales_for_tensorrt_are_symmetric_and_signed(bench: Bench, filed: Version) -> None:
    quantized, _ = bench.run(
        kind="quantize", model="net@1", dataset="blobs@1", target="tensorrt", calibration_samples=32
    )
    graph = graph_of(bench, quantized).graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    zeros = [values[n.input[2]] for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert zeros
    assert all(z.dtype == np.int8 and not z.any() for z in zeros)
    weights = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in values]
    channels = [(values[n.input[0]].shape, values[n.input[1]].size) for n in weights]
    assert sorted(channels) == [((4, 3), 3), ((4, 3, 3, 3), 4), ((4, 4, 3, 3), 4)]
    # What TensorRT takes the others take, too; not the other way round.
    engine, report = bench.run(kind="convert", model=quantized.ref, dataset="blobs@1", target="onnxruntime", **INT8)
    assert any("placed for tensorrt" in note for note in report["notes"])
    assert engine.details["precision"] == "int8"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "row"),
    [
        (lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, CLASSES)), (12,)),
        (lambda: SmallVit(dim=16, heads=2, depth=1), (3, 32, 32)),
    ],
    ids=["mlp", "vit"],
)
def test_other_networks(bench: Bench, ready: Any, module: Any, row: tuple[int, ...]) -> None:
    ready(module(), row)
    quantized, report = bench.run(
        kind="quantize", model="net@1", dataset="blobs@1", target="openvino", calibration_samples=32
    )
    assert report["quantized_layers"]
    assert abs(report["quality_change"]["difference"]) <= 0.08
    assert len(report["tried"]) == (2 if row == (3, 32, 32) else 1)  # attention: with and without SmoothQuant
    engine, told = bench.run(
        kind="convert", model=quantized.ref, dataset="blobs@1", target="openvino", precision="int8"
    )
    assert "int8" in told["layers"].values()
    assert engine.metrics.parity is not None


@pytest.mark.slow
def test_a_regression(bench: Bench) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, 6)).astype(np.float32)
    y = (x @ rng.standard_normal((6, 1))).astype(np.float32)
    bench.dataset("line", train=(x, y), val=(x[:40], y[:40]), test=(x[40:], y[40:]))
    bench.model("net", trained(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)), x, y, 120), (6,))
    quantized, report = bench.run(
        kind="quantize", model="net@1", dataset="line@1", target="openvino", max_accuracy_drop=0.2
    )
    assert report["quality_change"]["name"] == "r2"
    assert report["guard"]["met"]
    assert quantized.verdict in ("unproven", "accepted")
    assert any("96 rows" in note for note in report["notes"])


def onnx_cnn(path: Path, *, rows: int | None, opset: int, last: bool) -> Signature:
    """Two convolutions as another tool would write them, channels last or first, one row at a time or any number."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array((rng.standard_normal(shape) * 0.3).astype(np.float32), name)

    given = ["x"]
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])] if last else []
    nodes += [
        helper.make_node("Conv", ["t" if last else "x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c2"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"]),
    ]
    size = rows or "n"
    shape = [size, 8, 8, 3] if last else [size, 3, 8, 8]
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info(given[0], TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size, CLASSES])],
        [
            weight("w1", 4, 3, 3, 3), weight("b1", 4), weight("w2", 4, 4, 3, 3),
            weight("w3", 4, CLASSES), weight("b3", CLASSES),
        ],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), str(path))
    batch = -1 if rows is None else rows
    axis = 0 if rows is None else None
    dims = (batch, 8, 8, 3) if last else (batch, 3, 8, 8)
    return Signature(
        inputs=(Tensor(name="x", shape=dims, batch_axis=axis),),
        outputs=(Tensor(name="y", shape=(batch, CLASSES), batch_axis=axis),),
    )


@pytest.mark.parametrize(("rows", "opset", "last"), [(None, 17, True), (1, 11, False)], ids=["nhwc", "fixed-old"])
def test_onnx_files(bench: Bench, tmp_path: Path, rows: int | None, opset: int, last: bool) -> None:
    signature = onnx_cnn(tmp_path / "m.onnx", rows=rows, opset=opset, last=last)
    bench.file("net", "onnx", tmp_path / "m.onnx", signature)
    row = (8, 8, 3) if last else (3, 8, 8)
    bench.dataset("blobs", **{name: blobs(row, 40, seed=i) for i, name in enumerate(("train", "val", "test"))})
    quantized, report = bench.run(kind="quantize", model="net@1", dataset="blobs@1", target="openvino")
    assert len(report["quantized_layers"]) == 3
    assert quantized.details["opset"] >= 13
    assert quantized.signature == signature
    engine, told = bench.run(
        kind="convert", model=quantized.ref, dataset="blobs@1", target="openvino", precision="int8"
    )
    assert "int8" in told["layers"].values()
    assert engine.signature == signature


class Outlier(nn.Module):
    """Its second layer multiplies a channel that is a thousand times larger than the one that the answer hangs on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.second = nn.Linear(12, 12)
        self.third = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


def fragile() -> nn.Module:
    """A network whose middle layer loses its answer in int8: it subtracts two large numbers."""
    module = Outlier()
    with torch.no_grad():
        for layer in (module.first, module.second):
            layer.weight.zero_()
            layer.bias.zero_()
        module.third.weight.zero_()
        module.third.bias.zero_()
        for i in range(CLASSES):
            module.first.weight[i, 4 * i : 4 * i + 4] = 1.0
            module.first.bias[i] = 5000.0
            module.second.weight[i, i] = 1.0
            module.second.bias[i] = -4990.0
            module.third.weight[i, i] = 1.0
    return module


def test_the_guard_leaves_what_hurts_in_higher_precision(bench: Bench) -> None:
    splits = {name: blobs((12,), seed=i) for i, name in enumerate(("train", "val", "test"))}
    bench.dataset("blobs", **splits)
    bench.model("net", fragile(), (12,))
    spec = {"kind": "quantize", "model": "net@1", "dataset": "blobs@1", "target": "openvino"}
    plain, before = bench.run(**spec)
    assert before["quality_change"]["difference"] < -0.2
    assert plain.verdict is None
    guarded, report = bench.run(**spec, max_accuracy_drop=0.02)
    assert guarded.verdict != "rejected"
    assert report["guard"]["met"]
    assert before["verdict"] is None  # nothing was asked for
    told = report["verdict"]
    # On rows that chose nothing.
    assert (told["verdict"], told["against"], told["split"]) == (guarded.verdict, "net@1", "test")
    assert (told["max_accuracy_drop"], told["difference"]) == (0.02, report["quality_change"])
    assert guarded.verdict == judge(report["quality_change"], 0.02).verdict
    assert report["guard"]["split"] == "val"
    assert report["guard"]["difference"] != report["quality_change"]
    assert told["told"]
    assert "samples_needed" in told
    assert [one["layer"] for one in report["higher_precision"]] == ["second"]
    assert report["higher_precision"][0]["drop_alone"] > 0.2
    assert report["quality_change"]["difference"] > -0.02
    assert "second" not in report["quantized_layers"]
    engine, told = bench.run(
        kind="convert", model=guarded.ref, dataset="blobs@1", target="openvino", precision="int8", tolerance=1.0
    )
    assert sorted(told["layers"].values()) == ["f32", "int8", "int8"]
    assert (told["layers"]["first"], told["layers"]["second"]) == ("int8", "f32")  # as quantize called them
    assert told["quality_change"]["difference"] > -0.02
    assert engine.verdict == judge(told["quality_change"], 0.02).verdict == "unproven"  # so few rows prove nothing


@pytest.mark.slow
def test_a_bound_that_cannot_be_met_is_rejected_with_figures(bench: Bench) -> None:
    bench.dataset("blobs", **{name: blobs((12,), seed=i) for i, name in enumerate(("train", "val", "test"))})
    layers = fragile()
    bench.model("net", nn.Sequential(layers.second, nn.ReLU(), layers.third), (12,))
    x, _ = blobs((12,))
    x[:, :CLASSES] += 5000.0  # the input itself needs more than eight bits
    y = x[:, :CLASSES].argmax(1).astype(np.int64)
    bench.dataset("large", train=(x, y), val=(x, y), test=(x, y))
    quantized, report = bench.run(
        kind="quantize", model="net@1", dataset="large@1", target="tensorrt", max_accuracy_drop=0.0
    )
    assert report["guard"]["met"] or quantized.verdict != "accepted"
    assert report["guard"]["difference"]["n"] == ROWS


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: np.zeros_like(x), "every number of the 96 rows .* is zero"),
        (lambda x: np.full_like(x, 2.5), "is 2.5"),
        (lambda x: np.repeat(x[:1], len(x), 0), "the same row"),
        (lambda x: np.where(np.arange(x.size).reshape(x.shape) == 7, np.nan, x), "NaN"),
    ],
)
def test_data_that_calibrate_nothing(bench: Bench, change: Any, told: str) -> None:
    x, y = blobs((12,))
    bench.dataset("bad", train=(change(x).astype(np.float32), y), val=(x, y), test=(x, y))
    bench.model("net", nn.Sequential(nn.Linear(12, CLASSES)), (12,))
    for dry in (False, True):
        with pytest.raises(Unprocessable, match=told) as caught:
            bench.apply(kind="quantize", model="net@1", dataset="bad@1", target="openvino", dry_run=dry)
        assert caught.value.code == "bad_calibration"


def test_what_cannot_be_quantized(bench: Bench, filed: Version) -> None:
    spec = {"kind": "quantize", "dataset": "blobs@1", "target": "openvino", "calibration_samples": 8}
    quantized, _ = bench.run(**spec, model="net@1")
    with pytest.raises(Conflict) as caught:
        bench.apply(**spec, model=quantized.ref)
    assert caught.value.code == "already_quantized"
    with pytest.raises(Conflict) as caught:
        bench.apply(**spec | {"mode": "qat"}, model="net@1")
    assert caught.value.code == "not_trainable"
    path = bench.artifacts.fetch(f"{quantized.folder}/model.onnx", bench.folder / "q.onnx")
    bench.file("file", "onnx", path, quantized.signature)
    with pytest.raises(Conflict) as caught:  # quantized by somebody else
        bench.apply(**spec, model="file@1")
    assert caught.value.code == "already_quantized"
    for target, precision, code in (
        ("openvino", "fp32", "already_quantized"),
        ("tensorrt", "int8", "quantized_for_another_target"),
    ):
        with pytest.raises(Conflict) as caught:
            bench.apply(kind="convert", model=quantized.ref, target=target, precision=precision)
        assert caught.value.code == code
    with pytest.raises(Conflict) as caught:
        bench.apply(kind="convert", model="net@1", target="openvino", precision="int8")
    assert caught.value.code == "not_quantized"


def test_several_inputs_are_refused(bench: Bench) -> None:
    bench.dataset("blobs", **{name: blobs((4,), 8) for name in ("train", "val", "test")})
    inputs = (Tensor(name="left", shape=(-1, 4)), Tensor(name="right", shape=(-1, 3)))
    version = bench.model("one", nn.Linear(4, CLASSES), (4,))
    folder = bench.folder / "two"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"")
    two = bench.publish("two", "onnx", folder, Signature(inputs=inputs, outputs=version.signature.outputs))
    assert TwoInputs  # the network that an owner would send
    with pytest.raises(Unprocessable, match="2 inputs") as caught:
        bench.apply(kind="quantize", model=two.ref, dataset="blobs@1", target="openvino")
    assert caught.value.code == "several_inputs"


def test_nothing_to_quantize(bench: Bench) -> None:
    bench.dataset("blobs", **{name: blobs((4,), 16) for name in ("train", "val", "test")})
    bench.model("net", nn.Sequential(nn.ReLU(), nn.Softmax(1)), (4,))
    with pytest.raises(Problem) as caught:
        bench.apply(kind="quantize", model="net@1", dataset="blobs@1", target="openvino")
    assert caught.value.code == "nothing_to_quantize"


def test_a_dry_run_says_what_would_happen_and_makes_nothing(bench: Bench, ready: Any) -> None:
    ready(TinyCnn())
    outcome = bench.apply(kind="quantize", model="net@1", target="openvino", dry_run=True)
    assert outcome.folder is None
    report = outcome.report
    assert report["layers"] == {"conv1": "int8", "conv2": "int8", "fc": "int8"}
    assert report["bytes"]["after"] < report["bytes"]["before"]
    assert report["estimate_s"] > 0
    assert report["dry_run"] is True


@pytest.mark.slow
def test_training_with_rounding(bench: Bench, ready: Any) -> None:
    ready(Residual())
    dry = bench.apply(kind="quantize", model="net@1", target="openvino", dry_run=True, dataset="blobs@1", mode="qat")
    assert set(dry.report["layers"].values()) == {"int8"}
    quantized, report = bench.run(
        kind="quantize", model="net@1", dataset="blobs@1", target="openvino", mode="qat", calibration_samples=32,
        finetune={"epochs": 2, "lr": 0.001, "batch_size": 32},
    )  # fmt: skip
    assert report["training"]["epochs"] == 2
    assert quantized.details["quantized"]["mode"] == "qat"
    assert abs(report["quality_change"]["difference"]) <= 0.08
    assert {"ptq_quality", "qat_quality", "gain_over_ptq"} <= set(report["training"])
    engine, _ = bench.run(kind="convert", model=quantized.ref, dataset="blobs@1", target="openvino", **INT8)
    assert engine.details["precision"] == "int8"


def test_the_copy_that_rounds_learns_and_gives_its_weights_back() -> None:
    torch.manual_seed(0)
    module = torch.fx.symbolic_trace(Residual().eval())
    x = torch.randn(8, 3, 8, 8)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    rounding = qat.aware(module, [x], signed=True)
    with torch.no_grad():
        assert 0 < (rounding(x) - module(x)).norm() / module(x).norm() < 0.2
    rounding.train()
    rounding(x).square().mean().backward()
    learnt = {name: p for name, p in rounding.named_parameters() if p.grad is not None}
    assert len(learnt) == len(list(module.parameters()))
    with torch.no_grad():
        for parameter in learnt.values():
            parameter.sub_(0.01 * parameter.grad)
    qat.give_back(rounding, module)
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert not torch.equal(before["fc.weight"], after["fc.weight"])
    assert torch.equal(after["stem.weight"], dict(rounding.named_parameters())["stem.parametrizations.weight.original"])
    assert not torch.equal(before["block.bn1.running_mean"], after["block.bn1.running_mean"])
    masks = qat.masks({"stem.weight": torch.ones(1)}, rounding)
    assert list(masks) == ["stem.parametrizations.weight.original"]


@pytest.mark.slow
def test_marabou_on_its_own_rows(bench: Bench, shared: Path) -> None:
    path = shared / "models" / "marabou_cifar10_small.onnx"
    if not path.exists():
        pytest.skip("not at hand")
    rng = np.random.default_rng(0)
    x = rng.random((40, 32, 32, 3), dtype=np.float32)
    y = rng.integers(0, 10, 40)
    y[:10] = range(10)
    bench.dataset("noise", train=(x, y), val=(x, y), test=(x, y))
    signature = Signature(
        inputs=(Tensor(name="x:0", shape=(-1, 32, 32, 3)),), outputs=(Tensor(name="Identity:0", shape=(-1, 10)),)
    )
    bench.file("net", "onnx", path, signature)
    quantized, report = bench.run(kind="quantize", model="net@1", dataset="noise@1", target="openvino")
    assert len(report["quantized_layers"]) == 5
    assert any("opset 9" in note for note in report["notes"])
    assert report["bytes"]["after"] < report["bytes"]["before"] / 3
    bench.run(kind="convert", model=quantized.ref, target="openvino", precision="int8")


class Inverted(nn.Module):
    """MobileNetV2's block: a depthwise convolution between ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep, self.thin = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(self.deep(nn.functional.relu6(self.wide(x))))
        return self.fc(nn.functional.relu6(self.thin(x)).mean((2, 3)))


class Skip(nn.Module):
    """A U-Net in small: what a ReLU gives goes down, and is joined to something signed coming up."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.join = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 8, 3, padding=1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down = torch.relu(self.down(x))
        deep = torch.relu(self.deep(nn.functional.max_pool2d(down, 2)))
        return self.fc(torch.relu(self.join(torch.cat([self.up(deep), down], 1))).mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("network", [Inverted, Skip])
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_engines_of_depthwise_and_skipping_networks_agree_with_their_source(
    bench: Bench, network: type[nn.Module], target: str
) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, ROWS)
    x = (rng.standard_normal((ROWS, 3, 8, 8)) + y[:, None, None, None]).astype(np.float32)
    bench.dataset("rows", **dict.fromkeys(("train", "val", "test"), (x, y.astype(np.int64))))
    torch.manual_seed(0)
    bench.model("m", trained(network(), x, y), (3, 8, 8))
    version, _ = bench.run(kind="quantize", model="m@1", dataset="rows@1", target=target)
    _, report = bench.run(kind="convert", model=version.ref, dataset="rows@1", target=target, **INT8)
    assert report["parity"]["max_rel_diff"] < 0.05


def test_layers_that_onnx_runtime_leaves_in_float_are_named(bench: Bench) -> None:
    bench.dataset("blobs", **{name: blobs((12,), 40, seed=i) for i, name in enumerate(("train", "val", "test"))})
    spec = {"kind": "quantize", "dataset": "blobs@1", "target": "onnxruntime"}
    for name, activation, told in (
        ("relu", nn.ReLU(), "1 of 2 layers in float"),
        ("gelu", nn.GELU(), "compute no layer"),
    ):
        bench.model(name, nn.Sequential(nn.Linear(12, 16), activation, nn.Linear(16, CLASSES)), (12,))
        _, report = bench.run(model=f"{name}@1", **spec)
        (note,) = [n for n in report["notes"] if n.startswith("ONNX Runtime will")]
        assert told in note
    assert len(report["quantized_layers"]) == 2  # in the file
