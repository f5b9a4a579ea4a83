"""Buffers, profiles, shapes, graphs and the end of a plan, against a GPU that is none: what is wrong shows there."""

from __future__ import annotations

import ast
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import Cuda, CudaError, FakeLibcuda, OutOfMemory, Trt
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import BadTensor, DeviceLost, EngineLost, Internal, Unavailable
from app.gpu.device import Device
from app.gpu.inference import Plan, Session

ROOT = Path(__file__).resolve().parents[2]
rng = np.random.default_rng(0)


def doubled(cuda: Cuda, **more: Any) -> Trt:
    """y = 2x over rows of three."""
    given: dict[str, Any] = {
        "inputs": {"x": ("float32", (-1, 3))}, "outputs": {"y": ("float32", (-1, 3))},
        "profiles": [{"x": ((1, 3), (16, 3))}],
        "shapes": lambda s: {"y": s["x"]}, "work": lambda given: {"y": given["x"] * 2},
    }  # fmt: skip
    return Trt(cuda, **(given | more))


def opened(trt: Trt, refuses: bool = False) -> tuple[Plan, FakeLibcuda]:
    graphs = FakeLibcuda(trt.cuda, refuses)
    return Plan(trt, Device(trt.cuda, libcuda=graphs), b"plan"), graphs  # type: ignore[arg-type]


def ask(session: Session, **given: np.ndarray) -> dict[str, np.ndarray]:
    with session.filling({name: array.shape for name, array in given.items()}) as room:
        for name, array in given.items():
            room[name][...] = array
    return {name: array.copy() for name, array in session.run().items()}


def rows(n: int) -> np.ndarray:
    return rng.standard_normal((n, 3)).astype(np.float32)


def empty(cuda: Cuda) -> bool:
    return not cuda.heap.blocks and not cuda.pinned.blocks


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 16), min_size=1, max_size=30),
    buckets=st.booleans(),
    refuses=st.booleans(),
    whole=st.booleans(),
)
def test_any_order_of_sizes_gives_what_numpy_gives(sizes: list[int], buckets: bool, refuses: bool, whole: bool) -> None:
    cuda = Cuda()
    profiles = [{"x": ((1, 3), (4, 3))}, {"x": ((5, 3), (16, 3))}] if buckets else [{"x": ((1, 3), (16, 3))}]
    dtype = "int64" if whole else "float32"
    trt = doubled(cuda, profiles=profiles, inputs={"x": (dtype, (-1, 3))}, outputs={"y": (dtype, (-1, 3))})
    plan, graphs = opened(trt, refuses)
    sessions = [plan.session(), plan.session()]
    for turn, n in enumerate(sizes):
        x = (rows(n) * 100).astype(dtype)
        np.testing.assert_array_equal(ask(sessions[turn % 2], x=x)["y"], x * 2)
    assert graphs.launched == 0 if refuses else graphs.launched <= len(sizes)
    plan.close()
    plan.close()
    assert empty(cuda)
    assert graphs.made == {}


def test_a_size_that_comes_again_is_one_launch_and_nothing_is_told_twice() -> None:
    cuda = Cuda()
    trt = doubled(cuda)
    plan, graphs = opened(trt)
    session = plan.session()
    for _ in range(3):
        ask(session, x=rows(4))
    assert session.times is not None
    assert session.times.graph
    assert graphs.captured == 1
    assert graphs.launched == 2
    assert [call[0] for call in trt.told if call[0] != "profile"].count("shape") == 2  # the largest once, and these
    trt.told.clear()
    ask(session, x=rows(4))
    assert trt.told == []


def test_memory_that_grows_voids_the_graphs_that_know_the_old_place() -> None:
    cuda = Cuda()
    plan, graphs = opened(doubled(cuda))
    session = plan.session()
    ask(session, x=rows(1))
    ask(session, x=rows(16))
    assert graphs.captured == 2
    assert len(graphs.made) == 1
    for n in (1, 16, 1):
        x = rows(n)
        np.testing.assert_array_equal(ask(session, x=x)["y"], x * 2)
    assert graphs.captured == 3


def test_shapes_beside_the_rows_are_recorded_when_they_come_again() -> None:
    cuda = Cuda()
    trt = doubled(
        cuda, inputs={"x": ("float32", (-1, -1))}, outputs={"y": ("float32", (-1, -1))},
        profiles=[{"x": ((1, 1), (16, 16))}],
    )  # fmt: skip
    plan, graphs = opened(trt)
    session = plan.session()
    for n in range(1, 10):
        ask(session, x=np.ones((2, n), np.float32))
    assert graphs.captured == 0
    for _ in range(2):
        ask(session, x=np.ones((2, 9), np.float32))
    assert graphs.captured == 1
    assert graphs.launched == 1


def test_a_network_that_cannot_be_recorded_runs_call_by_call_and_says_why() -> None:
    plan, _ = opened(doubled(Cuda()), refuses=True)
    session = plan.session()
    for _ in range(3):
        x = rows(2)
        np.testing.assert_array_equal(ask(session, x=x)["y"], x * 2)
    assert session.uncapturable == "recording failed: cuStreamEndCapture failed with CUDA error 901"
    assert session.times is not None
    assert not session.times.graph


def test_what_spoils_one_recording_may_pass() -> None:
    plan, graphs = opened(doubled(Cuda()), refuses=True)
    session = plan.session()
    ask(session, x=rows(2))
    graphs.refuses = False
    ask(session, x=rows(2))
    assert session.uncapturable is None
    ask(session, x=rows(2))
    assert graphs.launched == 1


def test_tensorrt_may_say_beforehand_that_nothing_can_be_recorded() -> None:
    plan, graphs = opened(doubled(Cuda()))
    session = plan.session()
    session._context.is_stream_capturable = lambda stream: False
    ask(session, x=rows(2))
    assert graphs.captured == 0
    assert session.uncapturable == "TensorRT says that it cannot be recorded"


def test_a_profile_that_is_refused_comes_with_tensorrts_words() -> None:
    trt = doubled(Cuda(), profiles=[{"x": ((1, 3), (4, 3))}, {"x": ((5, 3), (16, 3))}])
    plan, _ = opened(trt)
    session = plan.session()
    trt.refuse = "setOptimizationProfileAsync: Error Code 3: API Usage Error"
    with pytest.raises(Internal, match=r"profile cannot be set: .*API Usage Error"):
        ask(session, x=rows(8))
    trt.refuse = ""
    x = rows(8)
    np.testing.assert_array_equal(ask(session, x=x)["y"], x * 2)


def test_a_closed_plan_has_no_sessions() -> None:
    cuda = Cuda()
    trt = doubled(cuda)
    plan, _ = opened(trt)
    plan.close()
    with pytest.raises(Unavailable, match="closed"):
        plan.session()
    assert not trt.contexts


def test_shapes_that_no_profile_takes_are_the_callers() -> None:
    plan, _ = opened(doubled(Cuda()))
    session = plan.session()
    with pytest.raises(BadTensor, match=r"x \[17, 3\] is not within \[1, 3\] … \[16, 3\]"):
        ask(session, x=rows(17))
    x = rows(2)
    np.testing.assert_array_equal(ask(session, x=x)["y"], x * 2)


def test_an_output_whose_shape_depends_on_values() -> None:
    cuda = Cuda()
    trt = doubled(
        cuda, outputs={"y": ("float32", (-1,))}, shapes=lambda s: {"y": None}, work=lambda g: {"y": g["x"][g["x"] > 0]}
    )
    plan, graphs = opened(trt)
    session = plan.session()
    for n in (3, 16, 1, 5):
        x = rows(n)
        np.testing.assert_array_equal(ask(session, x=x)["y"], x[x > 0])
    np.testing.assert_array_equal(ask(session, x=-np.ones((2, 3), np.float32))["y"], np.empty(0, np.float32))
    assert graphs.captured == 0
    assert "depends on values" in str(session.uncapturable)
    plan.close()
    assert empty(cuda)


def test_an_input_that_holds_sizes_stays_on_the_host() -> None:
    cuda = Cuda()
    trt = doubled(
        cuda, inputs={"x": ("float32", (-1, 3)), "n": ("int64", (1,))}, on_host=("n",),
        work=lambda g: {"y": g["x"] * int(g["n"][0])},
    )  # fmt: skip
    plan, _ = opened(trt)
    session = plan.session()
    x = rows(2)
    np.testing.assert_array_equal(ask(session, x=x, n=np.array([5]))["y"], x * 5)
    plan.close()
    assert empty(cuda)


def test_no_memory_is_an_error_of_its_own_batch() -> None:
    cuda = Cuda(limit=600)
    plan, _ = opened(doubled(cuda, profiles=[{"x": ((1, 3), (1000, 3))}]))
    session = plan.session()
    ask(session, x=rows(4))
    with pytest.raises(Unavailable, match="no memory left") as refused:
        ask(session, x=rows(1000))
    assert refused.value.code == "gpu_out_of_memory"
    x = rows(4)
    np.testing.assert_array_equal(ask(session, x=x)["y"], x * 2)
    plan.close()
    assert empty(cuda)


def test_a_gpu_that_fails_loses_the_engine() -> None:
    cuda = Cuda()
    plan, _ = opened(doubled(cuda))
    session = plan.session()
    cuda.fail = CudaError("cuStreamSynchronize failed: an illegal memory access was encountered")
    with pytest.raises(EngineLost, match="illegal memory access") as lost:
        ask(session, x=rows(2))
    assert lost.value.code == "engine_lost"
    cuda.fail = None
    plan.close()
    cuda.fail = OutOfMemory("out")
    with pytest.raises(Unavailable, match="closed"):
        session.run()


@pytest.mark.parametrize("said_by", ["CUDA", "TensorRT"])
def test_a_gpu_that_failed_for_good_is_told_from_an_engine_that_did(said_by: str) -> None:
    cuda = Cuda()
    trt = doubled(cuda)
    plan, _ = opened(trt)
    session = plan.session()
    cuda.broken = True
    if said_by == "CUDA":
        cuda.fail = CudaError("cuEventSynchronize failed: an illegal memory access was encountered")
    else:
        trt.refuse = "Cuda Runtime (an illegal memory access was encountered)"
    with pytest.raises(DeviceLost, match="illegal memory access"):
        ask(session, x=rows(2))
    plan.close()


def test_a_session_that_finds_no_memory_leaves_nothing_behind() -> None:
    cuda = Cuda()
    trt = doubled(cuda)
    plan, _ = opened(trt)

    class Refusing(cuda.Stream):  # type: ignore[name-defined,misc]
        def __init__(self, flags: int = 0) -> None:
            raise OutOfMemory("cuStreamCreate failed: out of memory")

    stream, cuda.Stream = cuda.Stream, Refusing
    with pytest.raises(Unavailable) as refused:
        plan.session()
    assert refused.value.code == "gpu_out_of_memory"
    assert not trt.contexts
    cuda.Stream = stream
    plan.close()


def test_what_tensorrt_refuses_comes_with_its_words() -> None:
    trt = doubled(Cuda())
    plan, _ = opened(trt)
    session = plan.session()
    trt.refuse = "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (In run at /x/y.cpp:3)"
    with pytest.raises(Internal, match="enqueueV3: Error Code 1: Cuda Runtime"):
        ask(session, x=rows(2))
    trt.refuse = ""
    x = rows(2)
    np.testing.assert_array_equal(ask(session, x=x)["y"], x * 2)
    trt.loads = False
    with pytest.raises(Internal, match="magic tag"):
        Plan(trt, plan.device, b"")


def test_a_context_that_takes_no_shapes_is_no_session() -> None:
    """As the second one of a plan of TensorRT 8.6 whose profile the first one holds."""
    cuda = Cuda()
    trt = doubled(cuda)
    plan, _ = opened(trt)
    first = plan.session()
    trt.profiles = [{"x": ((1, 3), (0, 3))}]
    with pytest.raises(Internal, match=r"no execution context could be made: .*x is out of profile"):
        plan.session()
    trt.profiles = plan.profiles
    x = rows(2)
    np.testing.assert_array_equal(ask(first, x=x)["y"], x * 2)
    plan.close()
    assert empty(cuda)


def test_a_long_run_is_waited_for_asleep() -> None:
    cuda = Cuda()
    cuda.millisecond = 10.0
    plan, _ = opened(doubled(cuda))
    session = plan.session()
    ask(session, x=rows(1))
    assert not cuda.slept
    ask(session, x=rows(1))
    assert cuda.slept


def test_closing_waits_for_nobody_and_takes_no_memory_from_under_a_run() -> None:
    cuda = Cuda()
    inside, go = threading.Event(), threading.Event()

    def work(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        inside.set()
        go.wait(10)
        return {"y": given["x"] * 2}

    plan, _ = opened(doubled(cuda, work=work))
    session = plan.session()
    found: list[Any] = []
    x = rows(3)
    thread = threading.Thread(target=lambda: found.append(ask(session, x=x)))
    thread.start()
    assert inside.wait(10)
    plan.close()
    assert not empty(cuda)
    go.set()
    thread.join(10)
    assert empty(cuda)
    with pytest.raises(Unavailable):
        ask(session, x=rows(1))


def test_whoever_comes_last_frees() -> None:
    """`close` that finds a run on its way, in the moment in which that run has looked for it already."""
    cuda = Cuda()
    trt = doubled(cuda)
    plan, _ = opened(trt)
    session = plan.session()

    class Turn:
        """A lock of which somebody asks just before the run lets go."""

        def __init__(self) -> None:
            self.lock, self.told = threading.Lock(), False
            self.acquire, self.release = self.lock.acquire, self.lock.release

        def __enter__(self) -> None:
            self.lock.acquire()

        def __exit__(self, *_: object) -> None:
            if not self.told:
                self.told = True
                plan.close()
            self.lock.release()

    ask(session, x=rows(2))
    session._turn = Turn()  # type: ignore[assignment]
    session.run()
    assert empty(cuda)
    assert not trt.contexts
    assert plan.device_bytes == 0


def test_copies_and_computing_are_timed_apart() -> None:
    cuda = Cuda()

    def work(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        cuda.clock += 40
        return {"y": given["x"] * 2}

    session = opened(doubled(cuda, work=work))[0].session()
    for _ in range(3):  # as it is, recorded, and as a graph
        ask(session, x=rows(2))
        times = session.times
        assert times is not None
        np.testing.assert_allclose([times.copy_in_ms, times.compute_ms, times.copy_out_ms], [0.01, 0.41, 0.01])


def test_what_is_held_on_the_gpu_is_told_to_the_byte() -> None:
    cuda = Cuda()
    plan, _ = opened(doubled(cuda))
    sessions = [plan.session() for _ in range(2)]
    for session in sessions:
        ask(session, x=rows(2))
    buffers = sum(block.nbytes for block in cuda.heap.blocks.values())
    assert buffers > 0
    assert plan.device_bytes == len(b"plan") + 2 * 4096 + buffers
    sessions[0].close()
    assert plan.device_bytes == len(b"plan") + 4096 + buffers // 2


def test_plugins_that_do_not_load_are_an_error() -> None:
    cuda = Cuda()
    trt = doubled(cuda)
    trt.init_libnvinfer_plugins = lambda logger, namespace: False  # type: ignore[method-assign]
    with pytest.raises(Internal, match="plugins do not load"):
        opened(trt)


def test_it_needs_numpy_and_the_errors_alone() -> None:
    files = sorted((ROOT / "app" / "gpu").glob("*.py"))
    found = {
        node.module if isinstance(node, ast.ImportFrom) else name.name
        for path in files
        for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 10)))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in node.names
    }
    ours = {name for name in found if name and name.partition(".")[0] in ("app", "workers")}
    assert {name for name in ours if not name.startswith("app.gpu")} == {"app.errors"}
    assert {str(n).partition(".")[0] for n in found} - set(sys.stdlib_module_names) == {"app", "numpy"}
    code = "import sys, app.gpu.inference as i; assert not {'pydantic', 'torch', 'onnx'} & set(sys.modules), i"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    for package in ("app/__init__.py", "app/gpu/__init__.py"):
        nodes = ast.walk(ast.parse((ROOT / package).read_text()))
        assert not [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
