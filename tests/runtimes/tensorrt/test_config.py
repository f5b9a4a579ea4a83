"""What a builder is told, read back from the real one."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from app.errors import Internal, Unprocessable
from app.gpu.messages import listener
from app.runtimes import BuildOptions
from app.runtimes._trt import building
from app.runtimes._trt.flavour import RTX

pytestmark = pytest.mark.skipif(not RTX.is_installed, reason="TensorRT for RTX is not installed: pip install -e .[rtx]")


@pytest.fixture(scope="module")
def builder() -> Any:
    trt = RTX.library()
    return trt.Builder(listener(trt))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16", "int8"])
def test_tf32_is_on_where_it_is_asked_for_alone(precision: str, builder: Any) -> None:
    trt = RTX.library()
    config = building._config(trt, builder, BuildOptions(precision))
    assert config.get_flag(trt.BuilderFlag.TF32) == (precision == "tf32")
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED


def test_every_option_reaches_the_builder(builder: Any) -> None:
    trt = RTX.library()
    options = BuildOptions(level=1, workspace_bytes=3 << 20, sparse=True, refit=True)
    config = building._config(trt, builder, options)
    plain = building._config(trt, builder, BuildOptions())
    assert config.builder_optimization_level == 1 != plain.builder_optimization_level
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 3 << 20
    assert plain.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) != 3 << 20
    for flag in (trt.BuilderFlag.SPARSE_WEIGHTS, trt.BuilderFlag.REFIT):
        assert config.get_flag(flag)
        assert not plain.get_flag(flag)


def test_plugins_that_do_not_load_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    trt = RTX.library()
    monkeypatch.setattr(trt, "init_libnvinfer_plugins", lambda logger, namespace: False)
    with pytest.raises(Internal, match="plugins do not load"):
        building.build(trt, tmp_path / "model.onnx", BuildOptions(), lambda share, phase: None)


def test_a_refused_operator_is_told_in_words(tmp_path: Any) -> None:
    F = TensorProto.FLOAT  # noqa: N806
    tensors = [helper.make_tensor_value_info("x", F, ["N", 4, 4]), helper.make_tensor_value_info("y", F, ["N"])]
    graph = helper.make_graph([helper.make_node("Det", ["x"], ["y"])], "g", tensors[:1], tensors[1:])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(Unprocessable) as refused:
        building.build(RTX.library(), path, BuildOptions(), lambda share, phase: None)
    assert refused.value.code == "unsupported_operator"
    assert [error["msg"] for error in refused.value.errors] == ["Det: TensorRT has no implementation of it"]
