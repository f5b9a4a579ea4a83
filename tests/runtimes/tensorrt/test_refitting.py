"""Other weights in a plan: which graphs have the same structure, and that TensorRT's answers are all heeded.

No GPU, no plan: TensorRT's Refitter is played here, by its real names.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from fake_gpu import Cuda, FakeLibcuda, Trt
from onnx import TensorProto, helper, numpy_helper

from app.domain.records import Signature, Tensor
from app.errors import Internal
from app.gpu.device import Device
from app.gpu.messages import listener
from app.runtimes import BuildOptions
from app.runtimes._trt import building, precision, refitting, runtime
from app.runtimes._trt.flavour import RTX
from demo.net import SimpleCNN
from workers.nn.export import to_onnx

F = TensorProto.FLOAT
HERE = {"runtime": "tensorrt", "version": "11.4", "device": "a", "compute_capability": "9.0", "driver": "580"}
OPTIONS = BuildOptions(refit=True, sparse=False)


def key(path: Path, **options: Any) -> str:
    return refitting.key_of(path, replace(OPTIONS, **options), HERE)


def exported(folder: Path, seed: int) -> Path:
    """A network as a version has it, with weights of its own."""
    torch.manual_seed(seed)
    path = folder / f"{seed}.onnx"
    tensors = [Tensor(name=n, shape=(-1, *s), batch_axis=0) for n, s in (("x", (1, 28, 28)), ("y", (1,)))]
    signature = Signature(inputs=tensors[:1], outputs=tensors[1:])
    to_onnx(SimpleCNN().eval(), signature, (torch.randn(2, 1, 28, 28),), path)
    return path


def test_other_weights_are_the_same_structure(tmp_path: Path) -> None:
    first, second = (exported(tmp_path, seed) for seed in (0, 1))
    assert first.read_bytes() != second.read_bytes()
    assert key(first) == key(second)
    halves = [tmp_path / f"half-{path.name}" for path in (first, second)]
    for path, half in zip((first, second), halves, strict=True):
        precision.write(path, half, "fp16")
    assert key(halves[0]) == key(halves[1]) != key(first)
    assert key(first, sparse=True) != key(second, sparse=True)  # zeros are where they were, or it is built


def graph(path: Path, constants: dict[str, Any], doc: str = "", branch: bool = False) -> Path:
    """A network with weights, and with numbers that are settings."""
    op = constants.get("op", "Add")
    constants = {name: value for name, value in constants.items() if name != "op"}
    values = {
        "w": np.ones((1, 1, 3, 3)), "b": np.zeros(4), "scale": 2.0, "low": 0.0, "high": 6.0, "exponent": 2.0,
        "step": 0.1, "both": np.ones(4), "folded": np.ones(4),
    } | constants  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], doc_string=doc),
        helper.make_node("Clip", ["a", "low", "high"], ["c"]),
        helper.make_node("Pow", ["c", "exponent"], ["d"]), helper.make_node("Mul", ["d", "scale"], ["e"]),
        helper.make_node("QuantizeLinear", ["e", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["f"]),
        helper.make_node(op, ["f", "b"], ["g"]), helper.make_node("Add", ["g", "both"], ["h"]),
        helper.make_node("Max", ["h", "both"], ["m"]),
        helper.make_node("Constant", [], ["two"], value_floats=[2.0]),
        helper.make_node("Expand", ["two", "four"], ["twos"]), helper.make_node("Mul", ["folded", "twos"], ["n"]),
        helper.make_node("Add", ["m", "n"], ["y"]),
    ]  # fmt: skip
    if branch:
        inner = helper.make_graph(
            [helper.make_node("Identity", ["b"], ["i"])], "i", [], [helper.make_tensor_value_info("i", F, [4])]
        )
        nodes.append(helper.make_node("If", ["which"], ["z"], then_branch=inner, else_branch=inner))
    initializers = [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in values.items()]
    initializers.append(numpy_helper.from_array(np.int8(0), "zero"))
    initializers.append(numpy_helper.from_array(np.bool_(True), "which"))
    initializers.append(numpy_helper.from_array(np.array([4], np.int64), "four"))
    given, made = (helper.make_tensor_value_info(n, F, ["N", 1, 6, 6]) for n in "xy")
    found = helper.make_graph(nodes, "g", [given], [made], initializers, doc_string=doc)
    model = helper.make_model(found, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, producer_name=doc)
    model.metadata_props.add(key="about", value=doc)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"w": np.full((1, 1, 3, 3), 7)}, True),
        ({"b": np.arange(4)}, True),
        ({"w": np.ones((1, 1, 1, 1))}, False),
        ({"op": "Sub"}, False),
        ({"high": 1.0}, False),
        ({"exponent": 3.0}, False),
        ({"scale": 3.0}, False),
        ({"step": 0.2}, False),
        ({"both": np.arange(4)}, False),
        ({"folded": np.arange(4)}, False),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_only_weights_are_exchanged(changed: dict[str, Any], same: bool, tmp_path: Path) -> None:
    first, second = graph(tmp_path / "a.onnx", {}), graph(tmp_path / "b.onnx", changed, doc="other words")
    assert (key(first) == key(second)) is same
    if same and "b" in changed:  # but where a branch may read them
        apart = [graph(tmp_path / "b.onnx", values, branch=True) for values in ({}, changed)]
        assert key(apart[0]) == key(apart[1])  # the same file
        first = graph(tmp_path / "a.onnx", {}, branch=True)
        assert key(first) != key(apart[1])


def test_another_build_is_another_structure(tmp_path: Path) -> None:
    path = graph(tmp_path / "a.onnx", {})
    others: list[dict[str, Any]] = [
        {}, {"precision": "tf32"}, {"max_batch": 8}, {"shapes": {"x": (1, 1, 8, 8)}}, {"buckets": (1, 64)},
        {"level": 5}, {"workspace_bytes": 1 << 20},
    ]  # fmt: skip
    keys = {key(path, **other) for other in others}
    keys |= {refitting.key_of(path, OPTIONS, HERE | {of: "other"}) for of in ("version", "device")}
    assert len(keys) == len(others) + 2
    assert refitting.key_of(path, OPTIONS, HERE | {"driver": "590"}) in keys


class Playing(Trt):
    """TensorRT with a plan of one weight. said: what it answers, where that is not all well."""

    def __init__(self, cuda: Cuda, **said: Any) -> None:
        ports = {"x": ("float32", (1, 2))}, {"y": ("float32", (1, 2))}
        super().__init__(cuda, *ports, [{"x": ((1, 2), (1, 2))}], lambda s: {"y": s["x"]}, lambda given: given)
        self.said = {"refittable": True, "refit_from_file": True, "missing": [], "refit_cuda_engine": True} | said
        self.calls: list[str] = []

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        trt, real = self, super().Runtime(logger)

        class Runtime:
            def deserialize_cuda_engine(self, blob: bytes) -> Any:
                engine: Any = real.deserialize_cuda_engine(blob)
                engine.refittable, engine.weights = trt.said["refittable"], blob
                engine.serialize = lambda: None if trt.said.get("serialize", 1) is None else engine.weights
                return engine

        return Runtime()

    def Refitter(self, engine: Any, logger: Any) -> Any:  # noqa: N802
        trt = self
        trt.cuda.current()

        class Refitter:
            given = b""

            def get_missing_weights(self) -> list[str]:
                return list(trt.said["missing"])

            def refit_cuda_engine(self) -> bool:
                trt.cuda.current()
                engine.weights = self.given
                if not trt.said["refit_cuda_engine"]:
                    logger.log(1, "Refitter: validation failed")
                return bool(trt.said["refit_cuda_engine"])

        return Refitter()

    def OnnxParserRefitter(self, refitter: Any, logger: Any) -> Any:  # noqa: N802
        trt = self

        class Error:
            def desc(self) -> str:
                return "no such weight"

        class OnnxParserRefitter:
            num_errors = trt.said.get("errors", 0)

            def get_error(self, n: int) -> Error:
                return Error()

            def refit_from_file(self, path: str) -> bool:
                refitter.given = Path(path).read_bytes()
                if not trt.said["refit_from_file"]:
                    logger.log(1, "refit: not all weights")
                return bool(trt.said["refit_from_file"])

        return OnnxParserRefitter()


def played(cuda: Cuda) -> Device:
    return Device(cuda, libcuda=FakeLibcuda(cuda))  # type: ignore[arg-type]


def test_a_plan_gets_other_weights(tmp_path: Path) -> None:
    (tmp_path / "new.onnx").write_bytes(b"new")
    cuda = Cuda()
    assert refitting.refit(Playing(cuda), played(cuda), b"old", tmp_path / "new.onnx") == b"new"
    assert not cuda.heap.blocks


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"refittable": False}, "this plan was not built for it"),
        ({"refit_from_file": False}, "refit: not all weights"),
        ({"refit_from_file": False, "errors": 1}, "no such weight"),
        ({"missing": ["fc.weight"]}, "the graph has no fc.weight"),
        ({"refit_cuda_engine": False}, "validation failed"),
        ({"serialize": None}, "TensorRT gave no reason"),
    ],
)
def test_what_tensorrt_does_not_take(said: dict[str, Any], told: str, tmp_path: Path) -> None:
    (tmp_path / "new.onnx").write_bytes(b"new")
    cuda = Cuda()
    with pytest.raises(Internal, match=told):
        refitting.refit(Playing(cuda, **said), played(cuda), b"old", tmp_path / "new.onnx")


def test_a_plan_of_the_same_structure_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, old = Cuda(), tmp_path / "old.plan"
    old.write_bytes(b"old")
    monkeypatch.setattr(runtime, "device", lambda: played(cuda))
    path, asked = graph(tmp_path / "a.onnx", {}), []
    options = replace(OPTIONS, refittable=lambda key: asked.append(key) or old)
    plan, about = runtime._plan(RTX, Playing(cuda), path, options, lambda *_: None)
    assert plan == path.read_bytes()
    assert about == {"refit": {"structure": asked[0], "done": True, "why_not": None}}


def layer(path: Path) -> Path:
    given, made = (helper.make_tensor_value_info(n, F, ["N", 3]) for n in "xy")
    weights = [numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")]
    whole = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [given], [made], weights)
    onnx.save(helper.make_model(whole, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


# TensorRT for RTX builds no plan whose weights can be exchanged; under another flag its builder does all the rest.
BUILDS = """
from tensorrt_rtx import *
from tensorrt_rtx import BuilderFlag as _Flag
class BuilderFlag:
    TF32, REFIT = _Flag.TF32, _Flag.STRICT_NANS
"""


@pytest.mark.skipif(not RTX.is_installed, reason="TensorRT for RTX is not installed: pip install -e .[rtx]")
@pytest.mark.parametrize("asked", [True, False])
def test_the_builder_is_told(asked: bool) -> None:
    trt = RTX.library()
    messages = listener(trt)
    builder = trt.Builder(messages)
    config = building._config(trt, builder, replace(OPTIONS, refit=asked))
    assert config.get_flag(trt.BuilderFlag.REFIT) is asked
    del config, builder  # before what listens


@pytest.mark.skipif(not RTX.is_installed, reason="TensorRT for RTX is not installed: pip install -e .[rtx]")
@pytest.mark.parametrize("known", [True, False])
def test_a_plan_that_does_not_take_the_weights_is_built(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "builds_for_refit.py").write_text(BUILDS)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "old.plan").write_bytes(b"not a plan")
    folder = tmp_path / "engine"
    folder.mkdir()
    options = replace(OPTIONS, refittable=lambda key: tmp_path / "old.plan" if known else None)
    runtime.build(
        replace(RTX, module="builds_for_refit"), layer(tmp_path / "source.onnx"), folder, options, lambda *_: None
    )
    about = json.loads((folder / "build.json").read_text())["refit"]
    assert about["structure"] == refitting.key_of(folder / "model.onnx", options, runtime.built_for(RTX))
    assert about["done"] is False
    assert bool(about["why_not"]) is known
    assert (folder / "model.plan").stat().st_size > 1000
