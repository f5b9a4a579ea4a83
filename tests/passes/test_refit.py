"""convert with `refit`: other weights in an earlier plan, where it answers as the source does. TensorRT is played."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.domain.records import Signature, Tensor, Version
from app.domain.specs import ConvertSpec
from app.errors import ParityError
from app.runtimes import Availability, BuildOptions, onnxruntime, tensorrt
from app.runtimes._trt import precision, refitting
from app.storage.timings import PLACE
from workers.passes import apply

ASKED = {"kind": "convert", "target": "tensorrt", "max_batch": 4, "refit": True}


class Played:
    """TensorRT whose plan is the graph, run by ONNX Runtime. gives: what becomes of a plan that is to get weights:
    those weights; those that it has; an error, and it is built; an error, and what is built is wrong, too."""

    gives = "new"

    def __init__(self) -> None:
        self.built = 0

    def build(self, source: Path, folder: Path, options: BuildOptions, progress: Any) -> dict[str, Any]:
        precision.write(source, folder / "model.onnx", options.precision)
        ties = tensorrt.ties() or {}
        key = refitting.key_of(folder / "model.onnx", options, ties)
        found = options.refittable(key) if options.refittable else None
        about = {"structure": key, "done": found is not None and self.gives in ("new", "old"), "why_not": None}
        if found and self.gives in ("old", "wrong"):
            shutil.copyfile(found, folder / "model.plan")
        else:
            shutil.copyfile(folder / "model.onnx", folder / "model.plan")
        if not about["done"]:
            about["why_not"] = "it does not fit" if found else None
            self.built += 1
            assert options.timing_cache is not None
            assert options.timing_cache.write(options.timing_cache.read() + ties["device"].encode())
        (folder / "build.json").write_text(json.dumps({"refit": about} if options.refit else {}))
        return ties | {"runtime": "tensorrt"}

    def load(self, folder: Path, *more: Any) -> Any:
        (folder.parent / "loaded").mkdir(exist_ok=True)
        shutil.copyfile(folder / "model.plan", folder.parent / "loaded" / "model.onnx")
        return onnxruntime.load(folder.parent / "loaded", *more)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    made = Played()
    monkeypatch.setattr(tensorrt, "available", lambda: Availability(True, precisions=("fp32",)))
    monkeypatch.setattr(tensorrt, "ties", lambda: {"version": "11.4", "device": "a"})
    monkeypatch.setattr(tensorrt, "build", made.build)
    monkeypatch.setattr(tensorrt, "load", made.load)
    return made


def convert(bench, model: str, **more: Any) -> tuple[Version, dict[str, Any], list[str]]:
    """What the job publishes and reports, and the lines of its log; latency is of no interest."""
    asked = ASKED | {"model": model} | more
    ctx = bench.context(asked)
    ctx.times = False
    try:
        outcome = apply(ConvertSpec.model_validate(asked), ctx)
    finally:
        ctx.report.close()
    draft = dict(outcome.draft)
    signature, format = draft.pop("signature"), draft.pop("format")
    made = bench.publish(model.partition("@")[0], format, outcome.folder, signature, parent=model, **draft)
    lines = [line["text"] for _, kind, line in bench.catalog.events(ctx.job.id) if kind == "log"]
    return made, outcome.report, lines


def network(bench, name: str, seed: int) -> Version:
    """A layer with weights of its own."""
    rng = np.random.default_rng(seed)
    weights = {"w": rng.standard_normal((6, 4)), "b": rng.standard_normal(4)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "b"], ["y"])]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", n]) for name, n in (("x", 6), ("y", 4))]
    initializers = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), bench.folder / "n")
    tensors = [Tensor(name=name, shape=(-1, n), batch_axis=0) for name, n in (("x", 6), ("y", 4))]
    return bench.file(name, "onnx", bench.folder / "n", Signature(inputs=tensors[:1], outputs=tensors[1:]))


@pytest.fixture
def trained(bench, played) -> Any:
    """m@1, its engine m@2, and m@3, the same network trained anew."""
    network(bench, "m", 0)
    version, report, _ = convert(bench, "m@1")
    assert network(bench, "m", 1).ref == "m@3"
    assert version.details["refit"] is True
    assert version.details["refitted_from"] is None
    assert any("slower kernels" in note for note in report["notes"])
    return bench


def test_weights_are_exchanged(trained, played) -> None:
    version, report, lines = convert(trained, "m@3")
    assert played.built == 1
    assert lines == []
    assert version.details["refitted_from"] == report["refitted_from"] == "m@2"
    assert version.details["structure"] == trained.catalog.version("m", 2).details["structure"]
    assert "The plan is that of m@2 with other weights: nothing was built." in report["notes"]
    assert report["parity"]["max_rel_diff"] < 1e-4
    (key,) = trained.artifacts.keys(PLACE)
    assert trained.artifacts.get_bytes(key) == b"a"


def test_a_plan_for_another_gpu_takes_what_was_measured_there(trained, played, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the other kind of job that builds. Nobody will exchange its weights: it is built for speed."""
    there = {"version": "11.4", "device": "b"}
    monkeypatch.setattr(tensorrt, "ties", lambda: there)
    for times in (1, 2):
        version = network(trained, "n", times)
        made, _, _ = convert(trained, version.ref, refit=False)
        monkeypatch.setattr(tensorrt, "ties", lambda: there | {"device": "c"})
        outcome = trained.apply(kind="plan", model=made.ref, ties=there | {"device": "c"})
        assert outcome.report["built_for"]["device"] == "c"
        monkeypatch.setattr(tensorrt, "ties", lambda: there)
    kept = sorted(trained.artifacts.get_bytes(key) for key in trained.artifacts.keys(PLACE))
    assert kept == [b"a", b"bb", b"cc"]


@pytest.mark.parametrize("gives", ["old", "error"])
def test_a_plan_that_keeps_old_weights_or_takes_none_is_built(trained, played, gives) -> None:
    played.gives = gives
    version, report, (line,) = convert(trained, "m@3")
    assert played.built == 2
    assert version.details["refitted_from"] is report["refitted_from"] is None
    assert report["parity"]["max_rel_diff"] < 1e-4
    assert ("the plan of m@2 and other weights" if gives == "old" else "it does not fit; the engine was built") in line


def test_an_engine_that_was_built_is_not_built_twice(trained, played) -> None:
    played.gives = "wrong"
    with pytest.raises(ParityError):
        convert(trained, "m@3")
    assert played.built == 2


def test_plans_of_other_models_and_builds_and_deleted_or_damaged_ones_are_not_taken(trained, played) -> None:
    network(trained, "n", 1)
    convert(trained, "n@1")
    assert played.built == 2
    made, _, _ = convert(trained, "m@3", max_batch=8)
    assert made.details["refitted_from"] is None  # it is another build
    assert played.built == 3
    version = trained.catalog.version("m", 2)
    trained.artifacts.put_bytes(b"damaged", f"{version.folder}/model.plan")
    version, _, lines = convert(trained, "m@3")
    assert version.details["refitted_from"] is None
    assert ["damaged" in line for line in lines] == [True]
    assert played.built == 4
    trained.catalog.drop_version("m", 2)
    trained.catalog.drop_version("m", 5)
    version, _, lines = convert(trained, "m@3")
    assert version.details["refitted_from"] is None
    assert "no earlier engine of m with `refit` has this structure" in version.details["not_refitted"]
    assert lines == [f"no weights are exchanged, the engine is built: {version.details['not_refitted']}"]
    assert played.built == 5


def test_where_it_is_refused() -> None:
    for other in ({"target": "tensorrt_rtx"}, {"target": "openvino"}, {"precision": "int8"}):
        with pytest.raises(ValueError, match="refit"):
            ConvertSpec.model_validate(ASKED | {"model": "m@1"} | other)
