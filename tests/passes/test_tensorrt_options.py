"""What a convert job for TensorRT asks of the build, and what it tells of it afterwards. TensorRT is played."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from app.domain.records import Signature, Tensor, Version
from app.domain.specs import ConvertSpec
from app.errors import Unprocessable
from app.runtimes import Availability, BuildOptions, onnxruntime, tensorrt
from app.runtimes._trt import layers, precision
from workers.passes import apply
from workers.plans import _options


class Played:
    """TensorRT whose plan is the graph that would be built, run by ONNX Runtime. kinds: what each product of the graph
    is computed in; the last one for those that are left."""

    def __init__(self) -> None:
        self.asked = BuildOptions()
        self.kinds = ["fp16"]

    def build(self, source: Path, folder: Path, options: BuildOptions, progress: Any) -> dict[str, Any]:
        self.asked = options
        typed = precision.write(source, folder / "model.onnx", options.precision, options.samples)
        products = [n.name for n in onnx.load(folder / "model.onnx").graph.node if n.op_type in layers.PRODUCTS]
        kinds = [*self.kinds, *self.kinds[-1:] * len(products)]
        told = [layers.Layer(f"l{n}", "gemm", kinds[n], None, (p,)).told() for n, p in enumerate(products)]
        about = {"precision": options.precision, "rest": typed.rest, "kept_fp32": typed.kept, "layers": told}
        (folder / "build.json").write_text(json.dumps(about))
        return {"runtime": "tensorrt"}

    def load(self, folder: Path, *more: Any) -> Any:
        engine = onnxruntime.load(folder, *more)
        told = json.loads((folder / "build.json").read_text())["layers"]
        engine.executed = lambda: layers.executed(told)  # type: ignore[attr-defined]
        return engine


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    made = Played()
    monkeypatch.setattr(tensorrt, "available", lambda: Availability(True, precisions=("fp32", "fp16", "int8")))
    monkeypatch.setattr(tensorrt, "build", made.build)
    monkeypatch.setattr(tensorrt, "load", made.load)
    return made


@pytest.fixture
def quantized(bench) -> Version:
    """Two products in int8, as quantize leaves them, and a tanh between them that is not."""
    rng, constants, nodes, before = np.random.default_rng(0), {"zero": np.int8(0)}, [], "x"
    for n in range(2):
        constants |= {f"w{n}": rng.integers(-127, 128, (4, 4)).astype(np.int8), f"s{n}": np.float32(0.02)}
        nodes += [
            helper.make_node("QuantizeLinear", [before, f"s{n}", "zero"], [f"q{n}"]),
            helper.make_node("DequantizeLinear", [f"q{n}", f"s{n}", "zero"], [f"d{n}"]),
            helper.make_node("DequantizeLinear", [f"w{n}", f"s{n}", "zero"], [f"v{n}"]),
            helper.make_node("MatMul", [f"d{n}", f"v{n}"], [f"m{n}"], name=f"node_{n}"),
            helper.make_node("Tanh", [f"m{n}"], [f"t{n}" if n == 0 else "y"]),
        ]
        before = f"t{n}"
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), bench.folder / "q")
    tensors = [Tensor(name=name, shape=(-1, 4), batch_axis=0) for name in "xy"]
    details = {"quantized": {"target": "tensorrt", "int8_layers": 2, "names": {"node_0": "fc1"}}}
    return bench.file(
        "m", "onnx", bench.folder / "q", Signature(inputs=tensors[:1], outputs=tensors[1:]), details=details
    )


def convert(bench, source: Version, **spec: Any) -> tuple[Version, dict[str, Any]]:
    """What the job publishes and reports, but for latencies, which need a GPU."""
    asked = {"kind": "convert", "model": source.ref, "target": "tensorrt", "max_batch": 8} | spec
    ctx = bench.context(asked)
    ctx.times = False
    try:
        outcome = apply(ConvertSpec.model_validate(asked), ctx)
    finally:
        ctx.report.close()
    draft = dict(outcome.draft)
    signature, format = draft.pop("signature"), draft.pop("format")
    return bench.publish(source.name, format, outcome.folder, signature, parent=source.ref, **draft), outcome.report


def test_options_reach_the_build_and_the_record(bench, quantized, played) -> None:
    played.kinds = ["int8"]
    options = {"buckets": [1, 4], "optimization_level": 1, "workspace_bytes": 1 << 24, "sparse": False}
    version, _ = convert(bench, quantized, precision="int8", **options)
    of = played.asked
    assert (of.buckets, of.level, of.workspace_bytes, of.sparse) == ((1, 4), 1, 1 << 24, False)
    assert options.items() <= version.details.items()
    again = _options(version)  # of a plan for another GPU
    assert (again.buckets, again.level, again.workspace_bytes, again.sparse) == ((1, 4), 1, 1 << 24, False)
    version, _ = convert(bench, quantized, precision="int8")
    assert not options.keys() & version.details.keys()
    assert _options(version).sparse is None


def test_an_int8_engine_tells_what_it_computes_in(bench, quantized, played) -> None:
    played.kinds = ["int8", "fp16"]
    version, report = convert(bench, quantized, precision="int8")
    assert report["layers"] == {"fc1": "int8", "node_1": "fp16"}
    assert "1 of 2 layers are computed in int8; not: node_1 (fp16)." in report["notes"]
    assert any("the others in fp16 where they can" in note for note in report["notes"])
    assert report["build"]["precisions"] == {"int8": 1, "fp16": 1}
    assert version.metrics.parity.tolerance == 0.2
    assert 0 < version.metrics.parity.max_rel_diff < 0.1  # tanh and scales in fp16: a few steps of int8 fall otherwise
    played.kinds = ["fp32"]
    with pytest.raises(Unprocessable, match="no layer of this network in int8"):
        convert(bench, quantized, precision="int8")


def test_an_fp16_engine_that_is_really_fp32_is_seen(bench, played, tmp_path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    weights = [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], "g", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "n")
    tensors = [Tensor(name=name, shape=(-1, 4), batch_axis=0) for name in "xy"]
    source = bench.file("n", "onnx", tmp_path / "n", Signature(inputs=tensors[:1], outputs=tensors[1:]))
    played.kinds = ["fp32"]
    _, report = convert(bench, source, precision="fp16")
    assert any("not what was asked for: only 0 of 1" in note for note in report["notes"])
    played.kinds = ["fp16"]
    _, report = convert(bench, source, precision="fp16")
    assert not any("not what was asked for" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"target": "openvino", "buckets": [1, 8]}, "buckets: for targets tensorrt and tensorrt_rtx, and not for open"),
        (
            {"target": "onnxruntime", "optimization_level": 3, "sparse": False},
            r"(?s)optimization_level: for targets.*sparse: for targets",
        ),
        ({"workspace_bytes": 1000}, "greater than or equal to 1048576"),
        ({"optimization_level": 6}, "less than or equal to 5"),
        ({"buckets": [8, 1]}, "buckets ascend"),
        ({"buckets": [1, 1]}, "buckets ascend"),
        ({"buckets": [0, 4]}, "greater than or equal to 1"),
        ({"buckets": []}, "at least 1 item"),
        ({"buckets": [1, 128]}, "the last of the buckets is 128, and max_batch is 64"),
    ],
)
def test_what_the_spec_refuses(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        ConvertSpec.model_validate({"kind": "convert", "model": "m@1", "target": "tensorrt"} | fields)
