"""One suite over every runtime that this machine can use: build, load, and the same answers as numpy's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from app import runtimes
from app.domain.records import Signature, Tensor
from app.errors import BadTensor, Internal, Problem, Unavailable, Unprocessable
from app.runtimes import BuildOptions, Engine, LoadOptions, Runtime, Slot

RUNTIMES = [name for name in runtimes.names() if name != "echo" and runtimes.get(name).available().ok]
F, I64, B, F16 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT16
BF16 = TensorProto.BFLOAT16
DTYPES = {F: "float32", I64: "int64", B: "bool", F16: "float16", BF16: "bfloat16", TensorProto.UINT8: "uint8"}
rng = np.random.default_rng(0)
Loaded = Callable[..., Engine]


def model_of(
    folder: Path,
    nodes: list[Any],
    inputs: list[tuple[str, int, list[Any]]],
    outputs: list[tuple[str, int, list[Any]]],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 17,
    domains: tuple[str, ...] = (),
) -> tuple[Path, Signature]:
    """A small graph as a file, with its signature. A dimension named by a string is dynamic."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
        [onnx.numpy_helper.from_array(v, k) for k, v in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    path = folder / "source.onnx"
    path.write_bytes(helper.make_model(made, opset_imports=opsets, ir_version=8).SerializeToString())

    def tensor(name: str, kind: int, shape: list[Any]) -> Tensor:
        sizes = tuple(-1 if isinstance(n, str) else n for n in shape)
        return Tensor(name=name, dtype=DTYPES[kind], shape=sizes, batch_axis=0 if sizes[:1] == (-1,) else None)

    return path, Signature(inputs=tuple(tensor(*i) for i in inputs), outputs=tuple(tensor(*o) for o in outputs))


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return runtimes.get(request.param)


@pytest.fixture
def loaded(runtime: Runtime, tmp_path: Path) -> Loaded:
    def build_and_load(source: Path, signature: Signature, options: LoadOptions | None = None) -> Engine:
        folder = tmp_path / "engine"
        folder.mkdir()
        phases: list[tuple[float, str]] = []
        built_for = runtime.build(source, folder, BuildOptions(), lambda share, phase: phases.append((share, phase)))
        assert built_for["version"] == runtime.available().version
        assert phases[-1][0] == 1.0
        assert [share for share, _ in phases] == sorted(share for share, _ in phases)
        assert any(p.suffix == runtime.SUFFIX for p in folder.iterdir())
        source.unlink()  # the engine stands alone
        return runtime.load(folder, signature, options or LoadOptions(threads=1))

    return build_and_load


W = rng.standard_normal((6, 4)).astype(np.float32)


def gemm(folder: Path) -> tuple[Path, Signature]:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"])]
    return model_of(folder, nodes, [("x", F, ["N", 6])], [("logits", F, ["N", 4])], {"w": W})


def test_a_dynamic_batch_gives_what_numpy_gives(loaded: Loaded, tmp_path: Path) -> None:
    engine = loaded(*gemm(tmp_path))
    for rows in (1, 3, 64, 2):
        x = rng.standard_normal((rows, 6)).astype(np.float32)
        found = engine.infer({"x": x})
        assert list(found) == ["logits"]
        assert found["logits"].dtype == np.float32
        np.testing.assert_allclose(found["logits"], x @ W, rtol=1e-5, atol=1e-5)


def test_every_dtype_and_a_scalar(loaded: Loaded, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=F16),
        helper.make_node("Greater", ["x", "zero"], ["positive"]),
        helper.make_node("Not", ["flag"], ["unflag"]),
        helper.make_node("Mul", ["sr", "sr"], ["square"]),
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Cast", ["x"], ["whole"], to=I64),
    ]
    path, signature = model_of(
        tmp_path,
        nodes,
        [("x", F, ["N", 3]), ("flag", B, ["N"]), ("sr", I64, [])],
        [
            ("same", F, ["N", 3]),
            ("half", F16, ["N", 3]),
            ("positive", B, ["N", 3]),
            ("unflag", B, ["N"]),
            ("square", I64, []),
            ("whole", I64, ["N", 3]),
        ],
        {"zero": np.zeros((), np.float32)},
    )
    engine = loaded(path, signature)
    x = np.array([[1.5, -2.0, 0.25], [0.0, 7.0, -1.0]], np.float32)
    x.flags.writeable = False  # as an array over the bytes of a request is
    given = {"sr": np.array(16000), "x": x, "flag": np.array([True, False])}
    found = engine.infer(given)
    assert list(found) == [t.name for t in signature.outputs]
    assert {n: (a.dtype.name, a.shape) for n, a in found.items()} == {
        "same": ("float32", (2, 3)),
        "half": ("float16", (2, 3)),
        "positive": ("bool", (2, 3)),
        "unflag": ("bool", (2,)),
        "square": ("int64", ()),
        "whole": ("int64", (2, 3)),
    }
    assert found["square"] == 256_000_000
    np.testing.assert_array_equal(found["same"], x)
    np.testing.assert_array_equal(found["half"], x.astype(np.float16))
    np.testing.assert_array_equal(found["positive"], x > 0)
    np.testing.assert_array_equal(found["unflag"], [False, True])
    np.testing.assert_array_equal(found["whole"], x.astype(np.int64))


def pool(folder: Path) -> tuple[Path, Signature]:
    nodes = [helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2])]
    return model_of(folder, nodes, [("x", F, ["N", 1, "H", "W"])], [("y", F, ["N", 1, "h", "w"])])


def test_dynamic_height_and_width(loaded: Loaded, tmp_path: Path) -> None:
    engine = loaded(*pool(tmp_path))
    for height, width in ((4, 6), (8, 2)):
        x = rng.standard_normal((2, 1, height, width)).astype(np.float32)
        wanted = x.reshape(2, 1, height // 2, 2, width // 2, 2).mean((3, 5))
        np.testing.assert_allclose(engine.infer({"x": x})["y"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("node", ["Add", "MatMul", "Flatten"])
def test_a_size_that_does_not_fit_the_network_is_the_callers_fault(loaded: Loaded, tmp_path: Path, node: str) -> None:
    if node == "Flatten":
        nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    else:
        nodes = [helper.make_node(node, ["x", "six" if node == "Add" else "w"], ["y"])]
    constants = {"six": W[:, 0], "w": W}
    engine = loaded(*model_of(tmp_path, nodes, [("x", F, ["N", "L"])], [("y", F, ["N", "M"])], constants))
    for wrong in (7, 5):  # 5 would be read past its end
        with pytest.raises(BadTensor, match=rf"\[1, {wrong}\]"):
            engine.infer({"x": np.zeros((1, wrong), np.float32)})
    assert len(engine.infer({"x": np.zeros((2, 6), np.float32)})["y"]) == 2


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"x": np.zeros((1, 7), np.float32)}, r"must be float32 \[-1, 6\], and is \[1, 7\]"),
        ({"x": np.zeros((1, 6))}, "float64"),
        ({"x": np.zeros(6, np.float32)}, "the batch axis is missing"),
        ({"x": np.zeros((0, 6), np.float32)}, "empty"),
        ({"y": np.zeros((1, 6), np.float32)}, r"missing \['x'\], unknown \['y'\]"),
        ({}, "missing"),
    ],
)
def test_wrong_inputs_are_told_and_do_not_poison_the_engine(
    loaded: Loaded, tmp_path: Path, inputs: dict[str, Any], said: str
) -> None:
    engine = loaded(*gemm(tmp_path))
    with pytest.raises(BadTensor, match=said):
        engine.infer(inputs)
    assert engine.infer({"x": np.zeros((1, 6), np.float32)})["logits"].shape == (1, 4)


def test_the_caller_owns_what_it_gets(loaded: Loaded, tmp_path: Path) -> None:
    engine = loaded(*gemm(tmp_path))
    x = np.ones((2, 6), np.float32)
    first = engine.infer({"x": x})["logits"]
    kept = first.copy()
    x[:] = 5
    second = engine.infer({"x": x})["logits"]
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    np.testing.assert_allclose(second, x @ W, rtol=1e-5, atol=1e-5)
    engine.close()
    np.testing.assert_allclose(second, x @ W, rtol=1e-5, atol=1e-5)


def test_inputs_that_have_to_be_copied_live_until_the_run_is_over(loaded: Loaded, tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    engine = loaded(
        *model_of(
            tmp_path,
            [helper.make_node("Sum", names, ["y"])],
            [(name, F, ["n", 300]) for name in names],
            [("y", F, ["n", 300])],
        )
    )
    for _ in range(20):
        rows = {name: rng.standard_normal((300, 64)).astype(np.float32).T for name in names}  # strided: copies are made
        for array in rows.values():
            array.flags.writeable = False
        np.testing.assert_allclose(engine.infer(rows)["y"], sum(rows.values()), rtol=1e-5, atol=1e-5)


def test_two_instances_from_many_threads(loaded: Loaded, tmp_path: Path) -> None:
    path, signature = gemm(tmp_path)
    engine = loaded(path, signature, LoadOptions(threads=1, instances=2))
    inputs = [rng.standard_normal((1 + i % 5, 6)).astype(np.float32) for i in range(200)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda x: engine.infer({"x": x})["logits"], inputs))
    for x, y in zip(inputs, found, strict=True):
        np.testing.assert_allclose(y, x @ W, rtol=1e-5, atol=1e-5)


def test_close_twice_and_then_infer(loaded: Loaded, tmp_path: Path) -> None:
    engine = loaded(*gemm(tmp_path))
    engine.close()
    engine.close()
    for _ in range(2):
        with pytest.raises(Unavailable):
            engine.infer({"x": np.zeros((1, 6), np.float32)})


def test_close_while_it_runs(loaded: Loaded, tmp_path: Path) -> None:
    engine = loaded(*gemm(tmp_path))
    errors: list[BaseException] = []

    def run() -> None:
        try:
            while True:
                engine.infer({"x": np.zeros((64, 6), np.float32)})
        except Unavailable:
            pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    engine.close()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert errors == []


def test_an_operator_of_ones_own_is_refused_by_name(runtime: Runtime, tmp_path: Path) -> None:
    nodes = [helper.make_node("Frobnicate", ["x"], ["y"], domain="my.own")]
    path, _ = model_of(tmp_path, nodes, [("x", F, ["N", 3])], [("y", F, ["N", 3])], domains=("my.own",))
    with pytest.raises(Unprocessable, match="Frobnicate") as caught:
        runtime.build(path, tmp_path, BuildOptions(), lambda share, phase: None)
    assert caught.value.code == "unsupported_operator"
    assert caught.value.hint


def test_a_file_that_is_no_model_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "junk.onnx"
    path.write_bytes(b"no model at all" * 20)
    folder = tmp_path / "engine"
    folder.mkdir()
    with pytest.raises(Unprocessable):
        runtime.build(path, folder, BuildOptions(), lambda share, phase: None)


def test_a_precision_that_it_lacks_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    path, _ = gemm(tmp_path)
    with pytest.raises(Unprocessable) as caught:
        runtime.build(path, tmp_path, BuildOptions(precision="fp16"), lambda share, phase: None)
    assert caught.value.code == "unsupported_precision"
    with pytest.raises(Unprocessable) as caught:
        runtime.build(path, tmp_path, BuildOptions(precision="int8"), lambda share, phase: None)
    assert "quantize" in str(caught.value.hint)


def test_a_broken_engine_does_not_load(runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(Problem) as caught:
        runtime.load(tmp_path, gemm(tmp_path)[1], LoadOptions(threads=1))
    assert isinstance(caught.value, Internal | Unavailable)


def test_a_signature_of_another_model_does_not_load(loaded: Loaded, tmp_path: Path) -> None:
    path, signature = gemm(tmp_path)
    more = signature.but(outputs=[*signature.outputs, Tensor(name="more", shape=(-1, 4))])
    with pytest.raises(Internal, match="signature"):
        loaded(path, more)


@pytest.mark.parametrize("through", ["infer", "slot"])
@pytest.mark.parametrize(("given", "answered"), [(BF16, BF16), (F, BF16), (BF16, F)])
def test_tensors_of_bfloat16_are_given_and_answered_as_float32(
    loaded: Loaded, tmp_path: Path, given: int, answered: int, through: str
) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=F),
        helper.make_node("Mul", ["wide", "two"], ["twice"]),
        helper.make_node("Cast", ["twice"], ["y"], to=answered),
        helper.make_node("Cast", ["n"], ["m"], to=I64),  # the others stay as they are
    ]
    two = {"two": np.array(2, np.float32)}
    inputs = [("n", I64, ["N", 1]), ("x", given, ["N", 3])]
    path, signature = model_of(tmp_path, nodes, inputs, [("y", answered, ["N", 3]), ("m", I64, ["N", 1])], two)
    engine = loaded(path, signature)
    # What a bfloat16 cannot tell apart is rounded: of two equally near ones to the even one.
    x = np.array([[1, -2.5, 1.001], [np.nan, np.inf, 0], [1.00390625, 1.01171875, 65280]], np.float32)
    kept = np.array([[1, -2.5, 1], [np.nan, np.inf, 0], [1, 1.015625, 65280]], np.float32)
    for rows in (1, 3):
        asked = {"x": x[:rows], "n": np.arange(rows)[:, None]}
        if through == "infer":
            found = engine.infer(asked)
        else:
            slot = runtimes.slot_of(engine, 4)
            slot.fill([asked], rows)
            found = slot.run()
        assert found["y"].dtype == np.float32
        exact = kept if BF16 in (given, answered) else x
        np.testing.assert_array_equal(found["y"], 2 * exact[:rows])
        np.testing.assert_array_equal(found["m"], asked["n"])


def test_bf16_where_it_is_offered(runtime: Runtime, tmp_path: Path) -> None:
    if "bf16" not in runtime.available().precisions:
        pytest.skip("this runtime offers no bf16 here")
    path, signature = gemm(tmp_path)
    runtime.build(path, tmp_path, BuildOptions(precision="bf16"), lambda share, phase: None)
    x = rng.standard_normal((4, 6)).astype(np.float32)
    engine = runtime.load(tmp_path, signature, LoadOptions(threads=1, precision="bf16"))
    found = engine.infer({"x": x})["logits"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, x @ W, rtol=0.05, atol=0.1)


def batches(x: np.ndarray, sizes: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    """x cut into requests of these sizes, read-only as the body of a request is."""
    x.flags.writeable = False
    ends = np.cumsum(sizes)
    return [{"x": x[end - n : end]} for n, end in zip(sizes, ends, strict=True)]


def run(slot: Slot, parts: list[dict[str, np.ndarray]], rows: int) -> dict[str, np.ndarray]:
    slot.fill(parts, rows)
    return slot.run()


def test_a_slot_gathers_requests_into_one_run(loaded: Loaded, tmp_path: Path) -> None:
    slot = runtimes.slot_of(loaded(*gemm(tmp_path)), 8)
    for sizes in ((1, 1, 1), (3,), (2, 4, 1, 1), (1,), (1, 1, 1), (30, 9)):  # beyond what was asked for, and back
        x = rng.standard_normal((sum(sizes), 6)).astype(np.float32)
        slot.fill(batches(x, sizes), sum(sizes))
        np.testing.assert_allclose(slot.run()["logits"], x @ W, rtol=1e-5, atol=1e-5)


def test_two_slots_do_not_share_memory(loaded: Loaded, tmp_path: Path) -> None:
    engine = loaded(*gemm(tmp_path), LoadOptions(threads=1, instances=2))
    slots = [runtimes.slot_of(engine, 8) for _ in range(2)]
    xs = [rng.standard_normal((4, 6)).astype(np.float32) for _ in slots]
    for slot, x in zip(slots, xs, strict=True):
        slot.fill(batches(x, (1, 3)), 4)
    found = [slot.run()["logits"] for slot in slots]
    for y, x in zip(found, xs, strict=True):
        np.testing.assert_allclose(y, x @ W, rtol=1e-5, atol=1e-5)


def test_what_a_fresh_slot_gives_is_the_callers(loaded: Loaded, tmp_path: Path) -> None:
    path, signature = model_of(
        tmp_path, [helper.make_node("Identity", ["x"], ["y"])], [("x", F, ["N", 3])], [("y", F, ["N", 3])]
    )
    slot = runtimes.slot_of(loaded(path, signature), 8)
    x = np.ones((4, 3), np.float32)
    slot.fill(batches(x, (2, 2)), 4)
    y = slot.run()["y"]
    slot.fill(batches(np.zeros((4, 3), np.float32), (2, 2)), 4)
    slot.run()
    if slot.fresh:
        np.testing.assert_array_equal(y, x)


def test_a_slot_takes_many_shapes_in_turn(loaded: Loaded, tmp_path: Path) -> None:
    slot = runtimes.slot_of(loaded(*pool(tmp_path)), 4)
    for _ in range(2):
        for width in range(2, 50, 2):  # more kinds than are kept
            x = rng.standard_normal((3, 1, 4, width)).astype(np.float32)
            slot.fill(batches(x, (1, 2)), 3)
            wanted = x.reshape(3, 1, 2, 2, width // 2, 2).mean((3, 5))
            np.testing.assert_allclose(slot.run()["y"], wanted, rtol=1e-5, atol=1e-6)


def test_a_slot_refuses_sizes_that_do_not_fit_and_works_on(loaded: Loaded, tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    engine = loaded(*model_of(tmp_path, nodes, [("x", F, ["N", "L"])], [("y", F, ["N", "M"])], {"w": W}))
    slot = runtimes.slot_of(engine, 4)
    for wrong in (7, 5, 7):
        with pytest.raises(BadTensor, match=rf"\[2, {wrong}\]"):
            run(slot, batches(np.zeros((2, wrong), np.float32), (1, 1)), 2)
        x = rng.standard_normal((2, 6)).astype(np.float32)
        slot.fill(batches(x, (1, 1)), 2)
        np.testing.assert_allclose(slot.run()["y"], x @ W, rtol=1e-5, atol=1e-5)


def test_a_slot_without_a_batch(loaded: Loaded, tmp_path: Path) -> None:
    path, signature = model_of(
        tmp_path,
        [helper.make_node("Mul", ["x", "sr"], ["y"])],
        [("x", F, [2, "L"]), ("sr", F, [])],
        [("y", F, [2, "L"])],
    )
    slot = runtimes.slot_of(loaded(path, signature), 1)
    for length in (3, 5, 3):
        x = rng.standard_normal((2, length)).astype(np.float32)
        slot.fill([{"sr": np.array(2, np.float32), "x": x}], 1)
        np.testing.assert_allclose(slot.run()["y"], 2 * x)


def test_a_slot_of_a_closed_engine(loaded: Loaded, tmp_path: Path) -> None:
    engine = loaded(*gemm(tmp_path))
    slot = runtimes.slot_of(engine, 8)
    slot.fill([{"x": np.zeros((1, 6), np.float32)}], 1)
    slot.run()
    engine.close()
    with pytest.raises(Unavailable):
        run(slot, [{"x": np.zeros((1, 6), np.float32)}], 1)


def test_sizes_that_were_run_are_known(loaded: Loaded, tmp_path: Path) -> None:
    engine = loaded(*gemm(tmp_path))
    met = getattr(engine, "met", None)
    if met is None:
        return  # every size is as good as another
    assert met == set()
    engine.infer({"x": np.zeros((3, 6), np.float32)})
    slot = runtimes.slot_of(engine, 8)
    slot.fill([{"x": np.zeros((1, 6), np.float32)}] * 5, 5)
    slot.run()
    assert met == {3, 5}


def test_answers_in_a_batch_are_those_alone(loaded: Loaded, tmp_path: Path) -> None:
    engine = loaded(*gemm(tmp_path))
    slot = runtimes.slot_of(engine, 64)
    for rows in range(1, 65):
        x = rng.standard_normal((rows, 6)).astype(np.float32)
        slot.fill(batches(x, (1,) * rows), rows)
        np.testing.assert_allclose(slot.run()["logits"], x @ W, rtol=1e-5, atol=1e-5)
