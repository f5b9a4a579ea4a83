"""What is OpenVINO's alone: TorchScript as a source, full precision on CPUs that prefer bf16, names that it loses."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from app.domain.records import Signature, Tensor
from app.errors import Unprocessable
from app.runtimes import BuildOptions, Engine, LoadOptions, openvino, slot_of


def quiet(share: float, phase: str) -> None:
    pass


@pytest.fixture
def script(tmp_path: Path) -> Path:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.Flatten(), torch.nn.Linear(12, 5)).eval()
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network, torch.zeros(2, 1, 4, 4)).save(str(path))
    x = torch.randn(3, 1, 4, 4)
    np.savez(tmp_path / "wanted.npz", x=x.numpy(), y=network(x).detach().numpy())
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shapes", [{}, {"input": (1, 1, 4, 4)}])
def test_torchscript(script: Path, tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    openvino.build(script, folder, BuildOptions(shapes=shapes), quiet)
    signature = Signature(
        inputs=(Tensor(name="input", shape=(-1, 1, 4, 4)),), outputs=(Tensor(name="logits", shape=(-1, 5)),)
    )
    wanted = np.load(tmp_path / "wanted.npz")
    found = openvino.load(folder, signature, LoadOptions(threads=1)).infer({"input": wanted["x"]})
    np.testing.assert_allclose(found["logits"], wanted["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.shared
def test_torchscript_that_cannot_be_converted_says_why(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    source = tmp_path / "model.pt"
    source.write_bytes((shared / "models" / "silero_vad.jit").read_bytes())
    with pytest.raises(Unprocessable, match="aten::lstm_cell") as caught:
        openvino.build(source, tmp_path, BuildOptions(), quiet)
    assert caught.value.code == "unsupported_operator"


def test_fp32_is_fp32(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((512, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x:0", "w"], ["Identity:0"])],
        "g",
        [helper.make_tensor_value_info("x:0", TensorProto.FLOAT, ["N", 512])],
        [helper.make_tensor_value_info("Identity:0", TensorProto.FLOAT, ["N", 64])],
        [onnx.numpy_helper.from_array(w, "w")],
    )
    source = tmp_path / "m.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    source.write_bytes(model.SerializeToString())
    openvino.build(source, tmp_path, BuildOptions(), quiet)
    signature = Signature(
        inputs=(Tensor(name="x:0", shape=(-1, 512)),), outputs=(Tensor(name="Identity:0", shape=(-1, 64)),)
    )
    x = rng.standard_normal((4, 512)).astype(np.float32)
    found = openvino.load(tmp_path, signature, LoadOptions(threads=1)).infer({"x:0": x})["Identity:0"]
    assert np.abs(found - x @ w).max() < 1e-3  # bf16 would be off by about 0.3


@pytest.fixture
def doubler(tmp_path: Path) -> Engine:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
    )
    source = tmp_path / "m.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    source.write_bytes(model.SerializeToString())
    openvino.build(source, tmp_path, BuildOptions(), quiet)
    signature = Signature(inputs=(Tensor(name="x", shape=(-1, 3)),), outputs=(Tensor(name="y", shape=(-1, 3)),))
    return openvino.load(tmp_path, signature, LoadOptions(threads=1, max_batch=16))


def test_a_batch_is_padded_to_a_known_size_that_is_little_larger(doubler: Engine) -> None:
    for rows in (8, 10, 16):
        doubler.infer({"x": np.zeros((rows, 3), np.float32)})
    slot, met = slot_of(doubler, 16), doubler.met  # type: ignore[attr-defined]
    for rows, size in ((8, 8), (9, 10), (10, 10), (13, 16), (7, 8), (6, 6), (5, 6), (3, 3), (11, 11), (8, 8)):
        x = np.random.default_rng(rows).standard_normal((rows, 3)).astype(np.float32)
        slot.fill([{"x": x[:1]}, {"x": x[1:]}] if rows % 2 else [{"x": x}], rows)
        np.testing.assert_array_equal(slot.run()["y"], 2 * x)
        assert size in met
    assert met == {3, 6, 8, 10, 11, 16}


def test_padding_is_zeros_and_not_another_ones_rows(doubler: Engine) -> None:
    doubler.infer({"x": np.zeros((5, 3), np.float32)})
    slot = slot_of(doubler, 16)
    for rows in (5, 4):
        slot.fill([{"x": np.full((rows, 3), np.nan, np.float32)}], rows)
        slot.run()
    (kind,) = slot._buffers._kinds.values()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(kind.wholes[0][4], np.zeros(3))


def test_what_is_measured_is_not_padded(doubler: Engine) -> None:
    for rows in (8, 7):
        doubler.infer({"x": np.zeros((rows, 3), np.float32)})
    assert doubler.met == {7, 8}  # type: ignore[attr-defined]


def steady(tmp_path: Path, nodes: list[Any], constants: dict[str, Any]) -> bool:
    """Whether an engine for x [N, 3] → y is known to do the same work whatever the values."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    source = tmp_path / "m.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    source.write_bytes(model.SerializeToString())
    openvino.build(source, tmp_path, BuildOptions(), quiet)
    signature = Signature(inputs=(Tensor(name="x", shape=(-1, 3)),), outputs=(Tensor(name="y", shape=(-1, 3)),))
    engine = openvino.load(tmp_path, signature, LoadOptions(threads=1))
    return bool(engine.steady)  # type: ignore[attr-defined]


def test_engines_whose_work_depends_on_values_are_known(tmp_path: Path) -> None:
    w = np.ones((3, 3), np.float32)
    assert steady(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": w})
    positions = helper.make_node("NonZero", ["x"], ["at"])
    assert not steady(tmp_path, [positions, helper.make_node("Cast", ["at"], ["y"], to=TensorProto.FLOAT)], {})


def test_a_loop_is_not_steady(tmp_path: Path) -> None:
    step = helper.make_graph(
        [helper.make_node("Add", ["v", "v"], ["v2"]), helper.make_node("Identity", ["go"], ["go2"])],
        "step",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [None, 3]),
        ],
        [
            helper.make_tensor_value_info("go2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v2", TensorProto.FLOAT, [None, 3]),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["trips"], to=TensorProto.INT64),
        helper.make_node("Loop", ["trips", "", "x"], ["y"], body=step),
    ]
    assert not steady(tmp_path, nodes, {})
