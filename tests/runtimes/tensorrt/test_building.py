"""Real plans, built where there is no GPU: the parser and the builder of TensorRT for RTX run on a CPU."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from app.domain.records import Signature, Tensor
from app.errors import Unprocessable
from app.gpu.messages import listener
from app.runtimes import BuildOptions, tensorrt_rtx
from app.runtimes._trt import building
from app.runtimes._trt.flavour import RTX
from benchmarks.gpu.networks import ResNet18
from demo.net import SimpleCNN
from workers.nn.export import to_onnx

pytestmark = pytest.mark.skipif(not RTX.is_installed, reason="TensorRT for RTX is not installed: pip install -e .[rtx]")
F = TensorProto.FLOAT
Sources = Callable[[str], Path]


class Block(nn.Module):
    """A residual block with a stride, as ResNet has them."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after))
        self.short = nn.Conv2d(before, after, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.b(self.a(x)) + self.short(x))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.encoder(self.embed(x)).mean(1))
        return found


TINY: tuple[Callable[[], nn.Module], tuple[int, ...]] = (lambda: nn.Linear(4, 2), (4,))
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cnn": (SimpleCNN, (1, 28, 28)),
    "resnet": (lambda: nn.Sequential(Block(3, 8), Block(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (3, 64, 64)),
    "transformer": (Transformer, (20, 8)),
}
LARGER = {"resnet18": (ResNet18, (3, 64, 64))}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            network, shape = (NETWORKS | LARGER).get(name, TINY)
            torch.manual_seed(0)
            path = tmp_path_factory.mktemp(name) / "source.onnx"
            tensors = [Tensor(name=n, shape=(-1, *s), batch_axis=0) for n, s in (("x", shape), ("y", (1,)))]
            to_onnx(
                network().eval(), Signature(inputs=tensors[:1], outputs=tensors[1:]), (torch.randn(2, *shape),), path
            )
            made[name] = path
        return made[name]

    return of


def build(source: Path, folder: Path, **options: Any) -> tuple[dict[str, Any], list[tuple[float, str]]]:
    folder.mkdir(exist_ok=True)
    seen: list[tuple[float, str]] = []
    found = tensorrt_rtx.build(
        source, folder, BuildOptions(**options), lambda share, phase: seen.append((share, phase))
    )
    return found, seen


def inputs(name: str, rows: int = 4) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((rows, *NETWORKS[name][1])).astype(np.float32)}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_a_plan_in_every_precision(name: str, precision: str, source: Sources, tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    found, seen = build(source(name), folder, precision=precision, max_batch=16, samples=[inputs(name)])
    assert found["runtime"] == "tensorrt_rtx"
    assert found["version"] == RTX.version
    assert (folder / "model.plan").stat().st_size > 10_000
    assert json.loads((folder / "build.json").read_text())["kept_fp32"] == {}
    assert [share for share, _ in seen] == sorted(share for share, _ in seen)
    assert seen[-1] == (1.0, "built")
    assert len(seen) > 20
    kinds = {t.data_type for t in onnx.load(folder / "model.onnx").graph.initializer} - {TensorProto.INT64}
    wanted = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}.get(precision, F)
    assert kinds == {wanted}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["cnn", "resnet18", "transformer"])
def test_the_same_graph_gives_the_same_bytes(name: str, precision: str, source: Sources, tmp_path: Path) -> None:
    plans = []
    for folder in "ab":
        build(source(name), tmp_path / folder, precision=precision, max_batch=16)
        plans.append((tmp_path / folder / "model.plan").read_bytes())
    if name == "resnet18":  # its compiler numbers what it makes up in an order that is another one each time
        plans = [renumbered(plan) for plan in plans]
    assert plans[0] == plans[1]


def renumbered(plan: bytes) -> bytes:
    """With the compiler's own symbols numbered as they come."""
    met: dict[bytes, bytes] = {}
    return re.sub(rb"__mye\d+", lambda found: met.setdefault(found[0], b"__mye#%d" % len(met)), plan)


def test_the_graph_beside_a_plan_builds_the_same_plan(source: Sources, tmp_path: Path) -> None:
    """It is what another GPU builds its plan from."""
    build(source("cnn"), tmp_path / "first", precision="fp16")
    build(tmp_path / "first" / "model.onnx", tmp_path / "again", precision="fp16")
    first, again = ((tmp_path / name / "model.plan").read_bytes() for name in ("first", "again"))
    assert first == again
    # Of bf16 the builder numbers its own symbols anew each time; the graph is the same.
    build(source("cnn"), tmp_path / "bf16", precision="bf16")
    build(tmp_path / "bf16" / "model.onnx", tmp_path / "bf16 again", precision="bf16")
    graphs = [(tmp_path / name / "model.onnx").read_bytes() for name in ("bf16", "bf16 again")]
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_rewritten_graph_computes_nearly_the_same(
    name: str, precision: str, source: Sources, tmp_path: Path
) -> None:
    build(source(name), tmp_path / "engine", precision=precision)
    asked = inputs(name)
    exact = reference(onnx.load(source(name)), asked)
    found = reference(onnx.load(tmp_path / "engine" / "model.onnx"), asked)
    assert found.dtype == np.float32
    assert not np.array_equal(found, exact)
    assert np.abs(found - exact).max() / max(1, np.abs(exact).max()) < {"fp16": 5e-3, "bf16": 5e-2}[precision]


def reference(model: Any, asked: dict[str, np.ndarray]) -> np.ndarray:
    from onnx.reference import ReferenceEvaluator

    return np.asarray(ReferenceEvaluator(model).run(None, asked)[0])


def test_what_overflows_in_fp16_stays_in_fp32_and_is_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["wide"], name="widening"),
        helper.make_node("Mul", ["wide", "scale"], ["narrow"], name="narrowing"),
        helper.make_node("MatMul", ["narrow", "v"], ["y"], name="last"),
    ]
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((6, 8)).astype(np.float32) * 3e4, "scale": np.array([1e-4], np.float32),
        "v": rng.standard_normal((8, 2)).astype(np.float32),
    }  # fmt: skip
    path = graph(tmp_path, nodes, [("x", F, ["N", 6])], [("y", F, ["N", 2])], constants)
    x = rng.standard_normal((8, 6)).astype(np.float32)
    build(path, tmp_path / "engine", precision="fp16", samples=[{"x": x}])
    about = json.loads((tmp_path / "engine" / "build.json").read_text())
    assert set(about["kept_fp32"]) == {"widening", "narrowing"}
    assert "reaches" in about["kept_fp32"]["widening"]
    assert about["range_samples"] == 1
    exact = x @ constants["w"] * constants["scale"] @ constants["v"]
    found = reference(onnx.load(tmp_path / "engine" / "model.onnx"), {"x": x})
    assert np.abs(found - exact).max() / np.abs(exact).max() < 1e-2


def test_a_weight_too_large_for_fp16_stays(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="huge")]
    path = graph(tmp_path, nodes, [("x", F, ["N", 2])], [("y", F, ["N", 2])], {"w": np.eye(2, dtype=np.float32) * 1e5})
    build(path, tmp_path / "engine", precision="fp16")
    assert "its weight w reaches 1e+05" in (tmp_path / "engine" / "build.json").read_text()


def test_what_fp16_has_few_digits_of_stays_in_fp32(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="faint"),
        helper.make_node("Mul", ["h", "scale"], ["g"], name="raising"),
        helper.make_node("Relu", ["g"], ["y"], name="last"),
    ]
    rng = np.random.default_rng(0)
    constants = {"w": rng.random((6, 4)).astype(np.float32) * 1e-7, "scale": np.array([1e6], np.float32)}
    path = graph(tmp_path, nodes, [("x", F, ["N", 6])], [("y", F, ["N", 4])], constants)
    x = rng.random((8, 6)).astype(np.float32)
    build(path, tmp_path / "engine", precision="fp16", samples=[{"x": x}])
    about = json.loads((tmp_path / "engine" / "build.json").read_text())
    assert set(about["kept_fp32"]) == {"faint", "raising"}
    assert "few digits" in about["kept_fp32"]["faint"]
    found = reference(onnx.load(tmp_path / "engine" / "model.onnx"), {"x": x})
    np.testing.assert_allclose(found, x @ constants["w"] * constants["scale"], rtol=1e-2)


def test_functions_of_the_file_are_written_in_half_precision_too(tmp_path: Path) -> None:
    twice = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    nodes = [helper.make_node("Twice", ["x"], ["y"], domain="own")]
    path = graph(tmp_path, nodes, [("x", F, ["N", 2])], [("y", F, ["N", 2])], {})
    model = onnx.load(path)
    model.functions.append(twice)
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, path)
    build(path, tmp_path / "engine", precision="fp16")
    assert json.loads((tmp_path / "engine" / "build.json").read_text())["kept_fp32"] == {}
    assert not onnx.load(tmp_path / "engine" / "model.onnx").functions


def test_an_exception_of_progress_ends_the_build(source: Sources, tmp_path: Path) -> None:
    class Ended(Exception):
        pass

    def progress(share: float, phase: str) -> None:
        if share > 0.3:
            raise Ended

    (tmp_path / "engine").mkdir()
    with pytest.raises(Ended):
        tensorrt_rtx.build(source("resnet"), tmp_path / "engine", BuildOptions(), progress)
    assert not (tmp_path / "engine" / "model.plan").exists()


def test_a_profile_for_each_bucket(source: Sources, tmp_path: Path) -> None:
    build(source("cnn"), tmp_path / "one")
    build(source("cnn"), tmp_path / "three", buckets=(1, 8, 64))
    one, three = ((tmp_path / n / "model.plan").stat().st_size for n in ("one", "three"))
    assert three > one


def graph(
    folder: Path, nodes: list[Any], given: list[Any], made: list[Any], constants: dict[str, np.ndarray] | None = None,
    domains: tuple[str, ...] = (),
) -> Path:  # fmt: skip
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(d, 1) for d in domains)]
    found = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(*i) for i in given], [helper.make_tensor_value_info(*o) for o in made],
        [numpy_helper.from_array(v, k) for k, v in (constants or {}).items()],
    )  # fmt: skip
    path = folder / "source.onnx"
    path.write_bytes(helper.make_model(found, opset_imports=opsets, ir_version=8).SerializeToString())
    return path


@pytest.mark.parametrize(
    ("nodes", "given", "made", "constants", "code", "told"),
    [
        pytest.param(
            [helper.make_node("Frobnicate", ["x"], ["y"], domain="mine")],
            [("x", F, ["N", 6])], [("y", F, ["N", 6])], {}, "unsupported_operator", "Frobnicate", id="unknown operator",
        ),
        pytest.param(
            [helper.make_node("Unique", ["x"], ["y"])],
            [("x", F, ["N"])], [("y", F, ["M"])], {}, "unsupported_operator", "Unique", id="operator without kernel",
        ),
        pytest.param(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            [("x", F, ["N", 5])], [("y", F, ["N", 4])], {"w": np.ones((6, 4), np.float32)},
            "unsupported_graph", r"dimension of input0 = 5 .* = 6 but must match", id="shapes that do not fit",
        ),
        pytest.param(
            [helper.make_node("Identity", ["x"], ["y"])],
            [("x", TensorProto.STRING, ["N"])], [("y", TensorProto.STRING, ["N"])], {},
            "unsupported_graph", "Failed to convert", id="strings",
        ),
        pytest.param(
            [helper.make_node("Reshape", ["x", "sizes"], ["y"])],
            [("x", F, ["N", 6]), ("sizes", TensorProto.INT64, [2])], [("y", F, ["A", "B"])], {},
            "unsupported_graph", "input sizes holds sizes", id="an input of sizes",
        ),
        pytest.param(
            [helper.make_node("Relu", ["x"], ["y"])],
            [("x", F, ["N", 3, "H", "W"])], [("y", F, ["N", 3, "H", "W"])], {},
            "open_shape", r'"shapes": \{"x": \[1, 3, 1, 1\]\}', id="open sizes",
        ),
        pytest.param(
            [helper.make_node("Identity", ["x"], ["y"])],
            [("x", TensorProto.BFLOAT16, ["N", 3])], [("y", TensorProto.BFLOAT16, ["N", 3])], {},
            "unsupported_dtype", "x is bf16", id="a type that numpy lacks",
        ),
        pytest.param(
            [helper.make_node("Add", ["x", "x"], ["y"])],
            [("x", TensorProto.DOUBLE, ["N", 3])], [("y", TensorProto.DOUBLE, ["N", 3])], {},
            "unsupported_dtype", "x is float64", id="doubles, which it would take for floats",
        ),
    ],
)  # fmt: skip
def test_what_is_refused_says_why(
    nodes: list[Any], given: list[Any], made: list[Any], constants: dict[str, Any], code: str, told: str, tmp_path: Path
) -> None:
    path = graph(tmp_path, nodes, given, made, constants, ("mine",))
    with pytest.raises(Unprocessable) as refused:
        build(path, tmp_path / "engine")
    assert refused.value.code == code
    assert re.search(told, f"{refused.value.detail} {refused.value.hint}"), refused.value.detail
    assert ".cpp" not in refused.value.detail
    assert not (tmp_path / "engine" / "model.plan").exists()


def test_open_sizes_that_are_said(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    path = graph(tmp_path, nodes, [("x", F, ["N", 3, "H", "W"])], [("y", F, ["N", 3, "H", "W"])])
    build(path, tmp_path / "engine", shapes={"x": (1, 3, 32, 48)})
    assert (tmp_path / "engine" / "model.plan").exists()


def test_a_file_that_is_no_onnx(tmp_path: Path) -> None:
    path = tmp_path / "source.onnx"
    path.write_bytes(b"not a graph")
    for precision in ("fp32", "fp16"):
        with pytest.raises(Unprocessable, match="the file is no ONNX graph"):
            build(path, tmp_path / "engine", precision=precision)
    with pytest.raises(Unprocessable, match=r"builds \.onnx files"):
        build(tmp_path / "source.pt", tmp_path / "engine")


@pytest.mark.parametrize("kind", ["operator", "sizes"])
def test_what_a_failed_build_leaves_is_not_collected_while_tensorrt_logs(
    kind: str, source: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Builder that the garbage collector ends within TensorRT's own call waits for a lock that this call holds."""

    def collecting(trt: Any) -> Any:
        class Collecting(type(listener(trt))):  # type: ignore[misc]
            times = 3  # what making a Builder logs

            def log(self, severity: Any, message: str) -> None:
                if self.times:
                    self.times -= 1
                    gc.collect()
                super().log(severity, message)

        return Collecting()

    nodes = [helper.make_node("Reshape", ["x", "sizes"], ["y"])]  # refused by what is called from the build
    if kind == "operator":
        nodes = [helper.make_node("Unique", ["x"], ["y"])]  # refused by the build itself
    given = [("x", F, ["N"]), ("sizes", TensorProto.INT64, [2])][: 1 if kind == "operator" else 2]
    path = graph(tmp_path, nodes, given, [("y", F, ["M"] if kind == "operator" else ["A", "B"])])
    gc.disable()
    try:
        with pytest.raises(Unprocessable) as refused:
            build(path, tmp_path / "refused")
        kept: list[Any] = [refused.value]
        kept.append(kept)  # a cycle, which holds the traceback and every frame in it
        del kept, refused
        monkeypatch.setattr(building, "listener", collecting)
        build(source("tiny"), tmp_path / "good")
    finally:
        gc.enable()
