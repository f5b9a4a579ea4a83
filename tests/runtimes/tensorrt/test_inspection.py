"""A plan is looked at and its layers timed, on a GPU that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from fake_gpu import Cuda, FakeLibcuda, Trt
from onnx import TensorProto, helper

from app.gpu.device import Device
from app.runtimes._trt.flavour import RTX
from app.runtimes._trt.inspection import inspect
from app.runtimes._trt.profiling import _profiler

TOLD = [
    {"Name": "first", "LayerType": "gemm", "Inputs": [{"Datatype": "Half"}], "Metadata": "[ONNX Layer: one]"},
    {"Name": "second", "LayerType": "kgen", "Inputs": [{"Datatype": "Float"}]},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"], name="one")], "g", [x], [y])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def playing(cuda: Cuda) -> Trt:
    trt = Trt(
        cuda, inputs={"x": ("float32", (-1, 3))}, outputs={"y": ("float32", (-1, 3))},
        profiles=[{"x": ((1, 3), (8, 3))}, {"x": ((9, 3), (64, 3))}],
        shapes=lambda given: {"y": given["x"]}, work=lambda given: {"y": given["x"] + 1},
    )  # fmt: skip
    trt.layers, trt.layer_ms = {"Layers": TOLD}, {"first": 0.5, "second": 0.25, "unheard of": 1.0}
    return trt


def test_each_layer_with_its_precision_and_its_time(path: Path) -> None:
    cuda = Cuda()
    trt = playing(cuda)
    libcuda = FakeLibcuda(cuda)
    found = inspect(trt, Device(cuda, libcuda=libcuda), b"plan", path)  # type: ignore[arg-type]
    assert [(layer.name, layer.precision, layer.products, layer.ms) for layer in found.layers] == [
        ("first", "fp16", ("one",), 0.5),
        ("second", "fp32", (), 0.25),
    ]
    assert found.timed_with == {"x": (8, 3)}
    assert found.notes == []
    assert libcuda.captured == 0  # a profiler waits for each layer
    assert not cuda.heap.blocks
    assert not cuda.pinned.blocks


@pytest.mark.parametrize("how", ["refused", "no profiler"])
def test_layers_that_cannot_be_timed(how: str, path: Path) -> None:
    cuda = Cuda()
    trt: Any = playing(cuda)
    if how == "refused":
        trt.refuse = "profiling failed"
    else:

        class Without:
            """A TensorRT without profilers."""

            def __getattr__(self, name: str) -> Any:
                if name == "IProfiler":
                    raise AttributeError(name)
                return getattr(playing(cuda), name)

        trt = Without()
    found = inspect(trt, Device(cuda, libcuda=FakeLibcuda(cuda)), b"plan", path)  # type: ignore[arg-type]
    assert [layer.ms for layer in found.layers] == [None, None]
    assert found.timed_with == {}
    assert bool(found.notes) is (how == "refused")
    assert not cuda.heap.blocks


@pytest.mark.skipif(not RTX.is_installed, reason="TensorRT for RTX is not installed: pip install -e .[rtx]")
def test_the_real_profiler_is_one() -> None:
    trt = RTX.library()
    assert hasattr(trt.IProfiler, "report_layer_time")
    made = _profiler(trt)
    assert isinstance(made, trt.IProfiler)
    made.runs.append({})
    made.report_layer_time("a", 0.5)
    made.report_layer_time("a", 0.25)
    assert made.runs == [{"a": 0.75}]
