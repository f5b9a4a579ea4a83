"""Graphs in half precision: what stays in fp32 is never rounded on its way, and int8 layers keep to int8."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.runtimes import BuildOptions
from app.runtimes._trt import building, precision, runtime
from app.runtimes._trt.flavour import RTX
from app.runtimes._trt.ranges import session
from app.runtimes._trt.sparsity import Sparse, sparse_layers

F, H = TensorProto.FLOAT, TensorProto.FLOAT16
ROWS = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
ONES = np.ones((3, 4), np.float32)
EYE = np.eye(4, dtype=np.float32)
SMALL = np.full(4, 1e-5, np.float32)
node = helper.make_node
needs_rtx = pytest.mark.skipif(not RTX.is_installed, reason="TensorRT for RTX is not installed: pip install -e .[rtx]")


def graph(nodes: list[Any], constants: dict[str, Any], outputs: tuple[str, ...] = ("y",), opset: int = 20) -> Any:
    found = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", F, ["N", 4])],
        [helper.make_tensor_value_info(name, F, ["N", 4]) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(found, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def written(model: Any, folder: Path, x: np.ndarray, kind: str = "fp16") -> tuple[Any, precision.Typed]:
    onnx.save(model, folder / "source.onnx")
    typed = precision.write(folder / "source.onnx", folder / "model.onnx", kind, [{"x": x}])
    return onnx.load(folder / "model.onnx"), typed


def answers(model: Any, x: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(found) for found in session(model).run(None, {"x": x})]


def types(model: Any) -> dict[str, int]:
    known = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {v.name: v.type.tensor_type.elem_type for v in (*known.value_info, *known.input, *known.output)}
    return found | {t.name: t.data_type for t in known.initializer}


def branching() -> list[Any]:
    """An If whose branches read what is around them."""
    branches = {
        f"{name}_branch": helper.make_graph(
            [node(op, [given, "two"], [name])], name, [], [helper.make_tensor_value_info(name, F, ["N", 4])]
        )
        for name, op, given in (("then", "Mul", "x"), ("else", "Add", "k"))
    }
    return [
        node("Mul", ["x", "two"], ["k"]), node("ReduceSum", ["x"], ["sum"], keepdims=0),
        node("Greater", ["sum", "zero"], ["is"]), node("If", ["is"], ["i"], name="if", **branches),
        node("Mul", ["i", "two"], ["y"]),
    ]  # fmt: skip


TWO = {"two": np.full(4, 2, np.float32), "zero": np.float32(0)}
# Graphs, and the nodes of each that stay in fp32.
CASES: dict[str, tuple[Any, np.ndarray, set[str]]] = {
    "an epsilon that fp16 has not": (
        graph(
            [
                node("Mul", ["x", "x"], ["a"], name="a"), node("ReduceMean", ["a", "axis"], ["b"], name="b"),
                node("Add", ["b", "epsilon"], ["c"], name="c"), node("Sqrt", ["c"], ["d"], name="d"),
                node("Div", ["x", "d"], ["e"], name="e"), node("Relu", ["e"], ["y"], name="f"),
            ],
            {"axis": np.array([1]), "epsilon": np.float32(1e-12)},
        ),
        np.vstack([ROWS, np.zeros((1, 4), np.float32)]), {"c", "d", "e"},
    ),
    "constants of every kind": (
        graph(
            [
                node("Constant", [], ["k"], value_float=2.5), node("Constant", [], ["l"], value_floats=[1.0, 2, 3, 4]),
                node("Constant", [], ["m"], value_ints=[-1, 4]), node("Mul", ["x", "k"], ["a"], name="a"),
                node("Add", ["a", "l"], ["b"], name="b"), node("Reshape", ["b", "m"], ["y"], name="c"),
            ],
            {},
        ),
        ROWS, set(),
    ),
    "the last node": (graph([node("MatMul", ["x", "w"], ["y"], name="a")], {"w": EYE * 1e5}), ONES, {"a"}),
    "two nodes read what is large": (
        graph(
            [
                node("MatMul", ["x", "w"], ["h"], name="a"), node("Mul", ["h", "s"], ["p"], name="b"),
                node("Mul", ["h", "s"], ["q"], name="c"), node("Add", ["p", "q"], ["y"], name="d"),
            ],
            {"w": EYE * 1e5, "s": SMALL},
        ),
        ONES, {"a", "b", "c"},
    ),
    "a weight of nodes of both kinds": (
        graph(
            [
                node("MatMul", ["x", "w"], ["h"], name="a"), node("Mul", ["h", "s"], ["i"], name="b"),
                node("MatMul", ["i", "w"], ["j"], name="c"), node("Mul", ["j", "s"], ["y"], name="d"),
            ],
            {"w": EYE * 3e4, "s": SMALL},
        ),
        ONES, {"a", "b", "d"},
    ),
    "a Cast of its own": (
        graph(
            [
                node("Cast", ["x"], ["i"], to=TensorProto.INT64), node("Cast", ["i"], ["f"], to=F),
                node("Mul", ["f", "x"], ["y"]),
            ],
            {},
        ),
        ROWS * 3, set(),
    ),
    "an output that is read": (
        graph([node("MatMul", ["x", "w"], ["z"]), node("MatMul", ["z", "w"], ["y"])], {"w": EYE}, ("y", "z")),
        ROWS, set(),
    ),
    "sizes": (
        graph(
            [
                node("Shape", ["x"], ["s"]), node("Cast", ["s"], ["f"], name="f", to=F),
                node("Mul", ["f", "one"], ["h"], name="h"), node("Cast", ["h"], ["i"], to=TensorProto.INT64),
                node("ConstantOfShape", ["i"], ["z"]), node("Add", ["x", "z"], ["y"]),
            ],
            {"one": np.float32(1)},
        ),
        ROWS, {"f", "h"},
    ),
    "branches": (graph(branching(), TWO), ROWS + 1, {"if"}),
    "the other branch": (graph(branching(), TWO), ROWS - 1, {"if"}),
    "constants among the nodes": (
        graph(
            [
                node("Constant", [], ["big"], value=numpy_helper.from_array(np.float32(1e5), "v")),
                node("Constant", [], ["small"], value=numpy_helper.from_array(np.float32(0.5), "v")),
                node("Div", ["x", "big"], ["h"], name="div"), node("Mul", ["x", "small"], ["i"]),
                node("Add", ["h", "i"], ["y"], name="add"),
            ],
            {},
        ),
        ROWS, {"div", "add"},
    ),
    "an input that ONNX has in fp32 alone": (
        graph(
            [
                node("Unsqueeze", ["x", "two"], ["a"]), node("Unsqueeze", ["a", "two"], ["b"]),
                node("Resize", ["b", "", "scales"], ["c"], mode="nearest"), node("Max", ["c", "low"], ["d"]),
                node("Squeeze", ["d", "all"], ["y"]),
            ],
            {"two": [2], "all": [2, 3], "scales": np.ones(4, np.float32), "low": np.float32(-0.5)},
        ),
        ROWS, set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_what_stays_is_not_rounded_on_its_way(name: str, kind: str, tmp_path: Path) -> None:
    model, x, kept = CASES[name]
    found, typed = written(model, tmp_path, x, kind)
    assert [(o.name, o.type.tensor_type.elem_type) for o in found.graph.output] == [
        (o.name, F) for o in model.graph.output
    ]
    if kind == "bf16":  # which has fp32's range, and which nothing here computes with
        assert set(typed.kept) <= kept
    else:
        assert set(typed.kept) == kept
        types(found)  # every node's are those that ONNX wants
        for have, wanted in zip(answers(found, x), answers(model, x), strict=True):
            np.testing.assert_allclose(have, wanted, rtol=2e-3, atol=2e-3)
    if RTX.is_installed:
        building.build(RTX.library(), tmp_path / "model.onnx", BuildOptions(kind), lambda *_: None)


def quantized(scales: tuple[float, float] = (0.02, 0.05), opset: int = 20) -> Any:
    """Two products in int8, with a sum between them and a softmax after them that are not."""
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {"zero": np.int8(0), "zeros": np.zeros(4, np.int8), "bias": np.ones(4, np.float32)}
    nodes, before = [], "x"
    for n, scale in enumerate(scales, 1):
        constants |= {
            f"s{n}": np.float32(scale), f"w{n}": rng.integers(-127, 128, (4, 4)).astype(np.int8),
            f"t{n}": np.array([1e-2, 2e-2, 1e-12, 1e-3], np.float32),
        }  # fmt: skip
        nodes += [
            node("QuantizeLinear", [before, f"s{n}", "zero"], [f"q{n}"], f"quantize{n}"),
            node("DequantizeLinear", [f"q{n}", f"s{n}", "zero"], [f"d{n}"], f"dequantize{n}"),
            node("DequantizeLinear", [f"w{n}", f"t{n}", "zeros"], [f"v{n}"], f"weights{n}", axis=1),
            node("MatMul", [f"d{n}", f"v{n}"], [f"m{n}"], f"product{n}"),
            node("Add", [f"m{n}", "bias"], [f"a{n}"], f"sum{n}"),
        ]
        before = f"a{n}"
    return graph([*nodes, node("Softmax", ["a2"], ["y"], "softmax")], constants, opset=opset)


@pytest.mark.parametrize("opset", [20, 17, 13])
def test_what_is_not_int8_is_fp16(opset: int, tmp_path: Path) -> None:
    model = quantized(opset=opset)
    found, typed = written(model, tmp_path, ROWS, "int8")
    assert typed == precision.Typed({}, 1, "fp16", [])
    assert next(o.version for o in found.opset_import) == max(opset, 19)
    made = types(found)
    assert {made[name] for name in ("d1", "v1", "m1", "a1", "s1", "d2", "v2", "m2", "a2")} == {H}
    assert {made[name] for name in ("w1", "q1", "w2", "q2")} == {TensorProto.INT8}
    np.testing.assert_allclose(answers(found, ROWS)[0], answers(model, ROWS)[0], atol=0.02)
    again = precision.write(tmp_path / "model.onnx", tmp_path / "again.onnx", "int8", [{"x": ROWS}])
    assert again == typed
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


@pytest.mark.parametrize(("scale", "told"), [(1e-6, "too small for fp16"), (600.0, "beyond what fp16 holds")])
def test_scales_that_fp16_cannot_hold(scale: float, told: str, tmp_path: Path) -> None:
    model = quantized((0.02, scale))
    found, typed = written(model, tmp_path, ROWS, "int8")
    assert list(typed.kept) == ["product2"]
    assert told in typed.kept["product2"]
    made = types(found)
    assert {made[name] for name in ("s2", "d2", "v2", "m2")} == {F}
    assert {made[name] for name in ("s1", "d1", "v1", "m1")} == {H}
    np.testing.assert_allclose(answers(found, ROWS)[0], answers(model, ROWS)[0], atol=0.02)


def test_a_dequantized_tensor_that_others_read_in_fp16_is_doubled(tmp_path: Path) -> None:
    """A Cast between it and the product that stays in fp32 would take that product out of int8."""
    model = quantized()
    model.graph.initializer.append(numpy_helper.from_array(np.full((4, 4), 1e5, np.float32), "huge"))
    nodes = list(model.graph.node)
    nodes[3].output[0] = "unshifted"
    nodes.insert(4, node("MatMul", ["d1", "huge"], ["far"], "far"))
    nodes.insert(5, node("Mul", ["far", "tiny"], ["near"], "near"))
    nodes.insert(6, node("Add", ["near", "unshifted"], ["m1"], "both"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1e-5), "tiny"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    found, typed = written(model, tmp_path, ROWS, "int8")
    assert set(typed.kept) == {"far", "near"}
    readers = {n.name: list(n.input) for n in found.graph.node}
    assert readers["product1"][0] == "d1"
    own = readers["far"][0]
    assert own != "d1"
    assert (types(found)[own], types(found)["d1"]) == (F, H)
    np.testing.assert_allclose(answers(found, ROWS)[0], answers(model, ROWS)[0], atol=0.02)


def test_a_file_that_cannot_be_written_so_keeps_its_types(tmp_path: Path) -> None:
    model = quantized(opset=17)
    model.graph.node[-1].attribute.append(helper.make_attribute("unheard_of", 1))
    onnx.save(model, tmp_path / "source.onnx")
    typed = precision.write(tmp_path / "source.onnx", tmp_path / "model.onnx", "int8")
    assert typed.rest == "fp32"
    assert "unheard_of" in typed.notes[0]
    assert onnx.load(tmp_path / "model.onnx").graph == model.graph


REFUSES = """
import onnx
from tensorrt_rtx import *
from tensorrt_rtx import OnnxParser as _Parser
class OnnxParser:
    num_errors = 0
    def __init__(self, network, log):
        self._real = _Parser(network, log)
    def parse_from_file(self, path):
        return b"fp16" not in onnx.load(path).graph.SerializeToString() and self._real.parse_from_file(path)
"""


@needs_rtx
def test_where_tensorrt_refuses_fp16_around_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "refuses_fp16.py").write_text(REFUSES)
    monkeypatch.syspath_prepend(tmp_path)
    onnx.save(quantized(), tmp_path / "source.onnx")
    (tmp_path / "engine").mkdir()
    flavour = replace(RTX, module="refuses_fp16")
    runtime.build(flavour, tmp_path / "source.onnx", tmp_path / "engine", BuildOptions("int8"), lambda *_: None)
    about = json.loads((tmp_path / "engine" / "build.json").read_text())
    assert about["rest"] == "fp32"
    assert "instead of fp16: TensorRT refuses this graph" in about["notes"][0]
    assert (tmp_path / "engine" / "model.plan").stat().st_size > 1000


def sparse(shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Random weights of which two in each four along an axis are zero."""
    rng = np.random.default_rng(0)
    weight = np.moveaxis(rng.standard_normal(shape).astype(np.float32), axis, -1)
    weight[..., 0::4] = weight[..., 3::4] = 0
    return np.moveaxis(weight, -1, axis)


@needs_rtx
@pytest.mark.parametrize("asked", [None, True, False])
@pytest.mark.parametrize("pruned", [True, False])
def test_sparse_weights_are_found_and_allowed(asked: bool | None, pruned: bool, tmp_path: Path) -> None:
    weights = {"w": sparse((4, 8), 0), "v": np.ones((8, 4), np.float32)}
    weights |= {} if pruned else {"w": np.ones((4, 8), np.float32)}
    model = graph([node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["h", "v"], ["y"])], weights)
    onnx.save(model, tmp_path / "source.onnx")
    (tmp_path / "engine").mkdir()
    options = BuildOptions("fp16", sparse=asked, level=1, workspace_bytes=1 << 30, buckets=(1, 8))
    runtime.build(RTX, tmp_path / "source.onnx", tmp_path / "engine", options, lambda *_: None)
    about = json.loads((tmp_path / "engine" / "build.json").read_text())
    used = pruned if asked is None else asked
    assert about["sparse"] == {"layers": int(pruned), "of": 2, "used": used}


def test_sparse_along_what_goes_in(tmp_path: Path) -> None:
    cases = {
        "conv": (node("Conv", ["x", "w"], ["y"]), (4, 8, 3, 3), 1),
        "product": (node("MatMul", ["x", "w"], ["y"]), (8, 4), 0),
        "gemm": (node("Gemm", ["x", "w"], ["y"], transB=1), (4, 8), 1),
        "the other way": (node("Gemm", ["x", "w"], ["y"]), (4, 8), 1),
        "too narrow": (node("MatMul", ["x", "w"], ["y"]), (6, 4), 1),
    }
    for name, (layer, shape, axis) in cases.items():
        onnx.save(graph([layer], {"w": sparse(shape, axis)}), tmp_path / "g.onnx")
        fits = name not in ("the other way", "too narrow")
        assert sparse_layers(tmp_path / "g.onnx") == Sparse(int(fits), 1), name
    onnx.save(quantized(), tmp_path / "g.onnx")
    assert sparse_layers(tmp_path / "g.onnx") == Sparse(0, 2)


@needs_rtx
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("SimpleCNN", (1, 28, 28)),
        pytest.param("ResNet18", (3, 64, 64), marks=pytest.mark.slow),
        pytest.param("SmallVit", (3, 32, 32), marks=pytest.mark.slow),
        pytest.param("Encoder", (9, 16), marks=pytest.mark.slow),
    ],
)
def test_graphs_that_quantize_makes(
    name: str, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every product that is quantized is computed in int8, as the builder's own list of layers tells."""
    import networks
    import torch

    from app.domain.records import Signature, Tensor
    from workers.nn import ptq, qdq
    from workers.nn.export import to_onnx

    torch.manual_seed(0)
    x, y = (Tensor(name=n, shape=(-1, *s), batch_axis=0) for n, s in (("x", shape), ("y", (1,))))
    signature = Signature(inputs=(x,), outputs=(y,))
    to_onnx(getattr(networks, name)().eval(), signature, (torch.randn(2, *shape),), tmp_path / "float.onnx")
    plain, _ = qdq.opened(tmp_path / "float.onnx", tmp_path)
    rows = [{"x": np.random.default_rng(n).standard_normal((1, *shape)).astype(np.float32)} for n in range(8)]
    model = ptq.quantize(plain, rows, "tensorrt", ptq.recipes(plain)[-1], 1)
    asked = np.concatenate([row["x"] for row in rows])
    found, typed = written(model, tmp_path, asked, "int8")
    assert typed == precision.Typed({}, 1, "fp16", [])
    have, wanted = answers(found, asked)[0], answers(model, asked)[0]
    assert np.abs(have - wanted).max() / max(1, np.abs(wanted).max()) < 2e-2

    usual, said = building.listener, []

    def listening(trt: Any) -> Any:
        class Listening(type(usual(trt))):  # type: ignore[misc]
            def log(self, severity: Any, message: str) -> None:
                said.extend(message.splitlines() if message.startswith("Layers:") else [])
                super().log(severity, message)

        return Listening()

    monkeypatch.setattr(building, "listener", listening)
    building.build(RTX.library(), tmp_path / "model.onnx", BuildOptions("int8"), lambda *_: None)
    products = [line for line in said if re.search("LayerType: (gemm|correlation)", line)]
    kinds = [re.search(r"Inputs: \[ \{ .*?Datatype: (\w+)", line)[1] for line in products]  # type: ignore[index]
    assert kinds.count("Int8") == len(qdq.int8_layers(model))
    assert set(kinds) <= {"Int8", "Half"}
