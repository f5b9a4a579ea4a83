"""A plan behind the interface of an engine, against a GPU that is none: batches, padding, names, copies, its end."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import Cuda, FakeLibcuda, Trt

from app.domain.records import Signature, Tensor
from app.errors import BadTensor, Internal, Unavailable
from app.gpu.device import Device
from app.gpu.inference import Plan
from app.runtimes import LoadOptions, slot_of
from app.runtimes._trt.engine import PlanEngine, PlanSlot
from workers.nn.executed import executed

SIGNATURE = Signature(
    inputs=(Tensor(name="x", shape=(-1, 3), batch_axis=0), Tensor(name="scale", shape=(-1, 1), batch_axis=0)),
    outputs=(Tensor(name="y", shape=(-1, 3), batch_axis=0),),
)


def loaded(cuda: Cuda, signature: Signature = SIGNATURE, instances: int = 1, **more: Any) -> PlanEngine:
    given: dict[str, Any] = {
        "inputs": {"scale": ("float32", (-1, 1)), "x": ("float32", (-1, 3))}, "outputs": {"y": ("float32", (-1, 3))},
        "profiles": [{"scale": ((1, 1), (32, 1)), "x": ((1, 3), (32, 3))}],
        "shapes": lambda s: {"y": s["x"]}, "work": lambda given: {"y": given["x"] * given["scale"]},
    }  # fmt: skip
    trt = Trt(cuda, **(given | more))
    plan = Plan(trt, Device(cuda, libcuda=FakeLibcuda(cuda)), b"plan")  # type: ignore[arg-type]
    return PlanEngine(plan, signature, LoadOptions(instances=instances, max_batch=32))


def rows(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    return {"x": rng.random((n, 3), np.float32), "scale": rng.random((n, 1), np.float32)}


def test_a_batch_of_several_requests_and_one_alone() -> None:
    cuda = Cuda()
    engine = loaded(cuda)
    slot = slot_of(engine, 32)
    for sizes in ((2, 3), (1,), (5, 1, 4), (32,)):
        parts = [rows(n) for n in sizes]
        slot.fill(parts, sum(sizes))
        found = slot.run()["y"]
        np.testing.assert_array_equal(found, np.concatenate([part["x"] * part["scale"] for part in parts]))
    engine.close()
    engine.close()
    assert not cuda.heap.blocks
    assert not cuda.pinned.blocks


def test_an_unknown_size_is_run_as_one_that_is_known() -> None:
    cuda = Cuda()
    engine = loaded(cuda)
    for n in (1, 8, 10, 32):
        engine.infer(rows(n))
    assert engine.met == {1, 8, 10, 32}
    slot = engine.slot()
    assert isinstance(slot, PlanSlot)
    for n, met in ((9, {1, 8, 10, 32}), (26, {1, 8, 10, 32}), (11, {1, 8, 10, 11, 32})):
        given = rows(n)
        slot.fill([given], n)
        np.testing.assert_array_equal(slot.run()["y"], given["x"] * given["scale"])
        assert engine.met == met
    assert slot.on_gpu is not None
    assert min(slot.on_gpu[:3]) > 0
    assert engine.gpu_bytes > 4096
    engine.close()
    assert engine.gpu_bytes == 0


def test_what_infer_gives_is_the_callers() -> None:
    engine = loaded(Cuda())
    first = rows(2)
    found = engine.infer(first)["y"]
    engine.infer(rows(2))
    engine.close()
    np.testing.assert_array_equal(found, first["x"] * first["scale"])
    with pytest.raises(Unavailable):
        engine.infer(first)
    with pytest.raises(Unavailable):
        engine.slot()


def test_what_somebody_still_reads_outlives_the_engine() -> None:
    engine = loaded(Cuda())
    slot, given = engine.slot(), rows(4)
    slot.fill([given], 4)
    found = slot.run()["y"]
    engine.close()
    np.testing.assert_array_equal(found, given["x"] * given["scale"])
    with pytest.raises(Unavailable):
        slot.fill([given], 4)


def test_several_threads_have_a_session_each() -> None:
    cuda = Cuda()
    barrier = threading.Barrier(2, timeout=10)

    def work(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        barrier.wait()  # both runs are on their way at once
        return {"y": given["x"] * given["scale"]}

    engine = loaded(cuda, instances=2, work=work)
    with ThreadPoolExecutor(2) as threads:
        asked = [rows(3), rows(5)]
        for given, found in zip(asked, threads.map(engine.infer, asked), strict=True):
            np.testing.assert_array_equal(found["y"], given["x"] * given["scale"])


def test_inputs_are_checked_before_anything_is_copied() -> None:
    engine = loaded(Cuda())
    with pytest.raises(BadTensor):
        engine.infer({"x": np.zeros((2, 3), np.float32)})
    with pytest.raises(BadTensor):
        engine.infer(rows(2) | {"x": np.zeros((2, 4), np.float32)})
    with pytest.raises(BadTensor, match="not within"):
        engine.infer(rows(33))


def test_a_plan_of_another_model() -> None:
    other = SIGNATURE.model_copy(update={"outputs": (Tensor(name="y", dtype="int64", shape=(-1, 3), batch_axis=0),)})
    cuda = Cuda()
    with pytest.raises(Internal, match="the plan has y as float32, the signature as int64"):
        loaded(cuda, other)
    with pytest.raises(Internal, match="names 1"):
        loaded(cuda, SIGNATURE.model_copy(update={"inputs": (Tensor(name="z", shape=(-1, 3), batch_axis=0),)}))


def test_a_model_without_a_batch() -> None:
    signature = Signature(inputs=(Tensor(name="x", shape=(2, 3)),), outputs=(Tensor(name="y", shape=(2, 3)),))
    engine = loaded(
        Cuda(), signature, inputs={"x": ("float32", (2, 3))}, outputs={"y": ("float32", (2, 3))},
        profiles=[{"x": ((2, 3), (2, 3))}], work=lambda given: {"y": given["x"] + 1},
    )  # fmt: skip
    x = np.ones((2, 3), np.float32)
    slot = engine.slot()
    slot.fill([{"x": x}], 1)
    np.testing.assert_array_equal(slot.run()["y"], x + 1)


def test_what_its_products_are_computed_in() -> None:
    engine = loaded(Cuda())
    assert engine.executed() is None  # TensorRT told nothing when the plan was built
    told = [{"precision": "int8", "products": ["conv1"]}, {"precision": "fp16", "products": []}]
    other = PlanEngine(engine.plan, SIGNATURE, LoadOptions(), told)
    assert other.executed() == {"conv1": "int8"}
    assert executed("tensorrt", other, Path(), Path()) == {"conv1": "int8"}
    assert executed("tensorrt", engine, Path(), Path()) is None
    other.close()
    engine.close()
