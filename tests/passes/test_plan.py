"""plan: an engine for another kind of GPU, compiled by a worker that has it; here ONNX Runtime is told to play them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import SimpleCNN

from app import runtimes
from app.domain.plans import key_of
from app.errors import Conflict, ParityError
from app.runtimes import onnxruntime
from app.storage.plans import read_plan
from workers.trials.links import host

Play = Callable[[str], None]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """From now on engines of ONNX Runtime are tied to that GPU."""
    monkeypatch.setattr(onnxruntime, "SOURCE", "model.onnx", raising=False)
    return lambda name: monkeypatch.setattr(onnxruntime, "ties", lambda: {"device": name}, raising=False)


@pytest.fixture
def engine(bench, play):
    torch.manual_seed(0)
    bench.model("m", SimpleCNN(), (1, 28, 28))
    outcome = bench.apply(kind="convert", model="m@1", target="onnxruntime", max_batch=4, tolerance=1e-3)
    draft = dict(outcome.draft)
    draft["built_for"] |= {"device": "a"}
    return bench.publish("m", draft.pop("format"), outcome.folder, draft.pop("signature"), **draft)


def test_a_plan_answers_as_the_graph_does_and_is_kept(bench, engine, play) -> None:
    play("b")
    asked = {"kind": "plan", "model": engine.ref, "ties": {"device": "b"}}
    outcome = bench.apply(**asked)
    assert (outcome.folder, outcome.cache_hit) == (None, False)
    report = outcome.report
    assert report["parity"]["n"] >= 64
    assert report["parity"]["tolerance"] == 1e-3  # the version's own
    plan = read_plan(bench.artifacts, key_of(engine, "model.onnx", {"device": "b"}))
    assert plan is not None
    assert report["plan"] == plan.key
    assert bench.apply(**asked).cache_hit
    with pytest.raises(Conflict, match=r"this worker builds for .*'b'.*wanted for .*'c'"):
        bench.apply(**(asked | {"ties": {"device": "c"}}))


def test_a_worker_with_another_gpu_judges_an_engine_by_a_plan_of_its_own(bench, engine, play) -> None:
    ctx = bench.context({"kind": "evaluate", "model": engine.ref})
    play("a")
    _, own = ctx.source()
    play("b")
    ctx = bench.context({"kind": "evaluate", "model": engine.ref})
    _, other = ctx.source()
    assert own.name == engine.ref
    assert other.name.startswith("plan-")
    loaded = runtimes.get("onnxruntime").load(other, engine.signature, runtimes.LoadOptions(threads=1))
    loaded.close()
    assert ctx.source()[1] == other


def test_a_plan_that_answers_otherwise_is_not_kept(bench, engine, play, monkeypatch: pytest.MonkeyPatch) -> None:
    play("b")
    built = onnxruntime.build
    bench.model("n", SimpleCNN(), (1, 28, 28))
    bench.run(kind="convert", model="n@1", target="onnxruntime", max_batch=4)
    _, wrong = bench.context({"kind": "evaluate"}).source("n@2")
    monkeypatch.setattr(onnxruntime, "build", lambda source, *more: built(wrong / "model.onnx", *more))
    with pytest.raises(ParityError):
        bench.apply(kind="plan", model=engine.ref, ties={"device": "b"})
    assert read_plan(bench.artifacts, key_of(engine, "model.onnx", {"device": "b"})) is None


def test_what_was_measured_on_one_gpu_is_not_taken_for_another(play) -> None:
    without = host()
    play("a")
    of_a = host()
    play("b")
    assert without != of_a != host()
