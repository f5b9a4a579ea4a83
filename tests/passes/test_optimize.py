"""The closed loop, its trials run in place: what it races, how it chooses, what it proves, and what it publishes."""

from __future__ import annotations

import subprocess
import sys
from operator import ge
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from channel_networks import SimpleCNN

from app.domain import specs
from app.domain.records import Job, Result, now
from app.errors import Conflict
from workers.passes import Outcome, Waits, apply

if TYPE_CHECKING:
    from passes.conftest import Bench

Splits = dict[str, tuple[np.ndarray, np.ndarray]]
QUICK = {"epochs": 2, "batch_size": 64, "lr": 0.05}


def optimize(bench: Bench, dataset: str = "stripes@1", **asked: Any) -> Outcome:
    """The whole job, each trial at once and in this process."""
    fields = {"kind": "optimize", "model": "net@1", "dataset": dataset, "targets": ["onnxruntime"], "max_batch": 8}
    spec = fields | {"finetune": QUICK} | asked
    ctx = bench.context(spec)
    try:
        for _ in range(40):
            found = apply(specs.parse(spec), ctx)
            if isinstance(found, Outcome):
                return found
            _run(bench, ctx.job, found)
    finally:
        ctx.report.close()
    raise AssertionError("it never came to an end")


def _run(bench: Bench, parent: Job, waits: Waits) -> None:
    assert waits.trials, "it waits for nothing"
    for name, asked in waits.trials.items():
        job = Job(
            id=f"{parent.id}-{name}", kind="trial", spec=asked, model=asked["model"], dataset=asked["dataset"],
            parent=parent.id, created_at=now(),
        )  # fmt: skip
        assert bench.catalog.trials.add(job, parent.attempt)
        bench.catalog.moved(job.id, was={"queued"}, to="running", attempt=1)
        ctx = bench.context(asked, id=f"of-{job.id}", parent=parent.id)
        try:
            outcome = apply(specs.parse(asked), ctx)
            assert isinstance(outcome, Outcome)
            ended: dict[str, Any] = {"to": "succeeded", "result": Result(report=outcome.report)}
        except Exception as error:
            ended = {"to": "failed", "error": {"detail": str(error), "code": "it_failed"}}
        finally:
            ctx.report.close()
        bench.catalog.moved(job.id, was={"running"}, attempt=1, **ended)


@pytest.fixture
def ready(bench: Bench, stripes: Splits) -> Bench:
    """A network that was trained a little, and enough test rows to accept something."""
    import torch

    torch.manual_seed(0)
    x, y = stripes["train"]
    rng = np.random.default_rng(7)
    more = np.concatenate([stripes["test"][0], stripes["val"][0], x])
    truth = np.concatenate([stripes["test"][1], stripes["val"][1], y])
    order = rng.permutation(len(more))
    bench.dataset("stripes", train=stripes["train"], val=stripes["val"], test=(more[order], truth[order]))
    bench.model("raw", SimpleCNN(), (1, 28, 28))
    outcome = bench.apply(kind="train", model="raw@1", dataset="stripes@1", epochs=6, batch_size=64, lr=0.1)
    assert outcome.folder is not None
    made = dict(outcome.draft)
    bench.publish("net", made.pop("format"), outcome.folder, made.pop("signature"), parent="raw@1", **made)
    return bench


def test_it_races_chooses_on_val_and_proves_on_test(ready: Bench) -> None:
    found = optimize(ready, trials=2, passes=["prune"], max_accuracy_drop=0.1)
    report = found.report
    table = {row["name"]: row for row in report["table"]}
    assert {"plain-onnxruntime-fp32", "tuned-onnxruntime-fp32", "design-0", "design-1"} <= set(table)
    assert set(report["baselines"]) == {"plain-onnxruntime-fp32", "tuned-onnxruntime-fp32"}
    assert report["winner"]["quality"]["split"] == "test"
    assert report["winner"]["quality"]["n"] == 840
    versions = {row["name"]: row["model"] for row in report["front"]}
    assert found.model == versions[report["winner"]["name"]]
    assert found.verdict in ("accepted", "rejected", "unproven")
    figures = [(row["quality"]["value"], row["speedup"]["1"]["ratio"], -row["bytes"]) for row in report["front"]]
    beaten = [one for one in figures if any(o != one and all(map(ge, o, one)) for o in figures)]
    assert len(beaten) <= 1  # the winner alone may stand there for its proof
    for row in report["front"] + report["beside"]:
        version = ready.catalog.version(*_exact(row["model"]))
        assert (version.format, version.verdict, version.parent) == ("onnxruntime", row["verdict"], "net@1")
        assert version.metrics.quality is not None
        assert version.metrics.quality.value == row["quality"]["value"]
        assert version.details["recipe"][-1]["kind"] == "convert"
    teachers = [link["finetune"]["teacher"] for link in _links(ready, found) if link.get("finetune")]
    assert teachers
    assert set(teachers) == {"net@1"}
    assert not found.cache_hit
    settings = report["settings"]
    assert {row["batch"] for row in settings["tried"]} == {1, 8}
    assert settings["recommended"]["instances"] == 1  # for latency
    assert settings["told"] in report["notes"]
    assert {len(epochs) for epochs in report["training"].values()} <= {QUICK["epochs"]}
    assert "tuned-onnxruntime-fp32" in report["training"]
    assert set(report["layers"]) == {"conv1", "conv2", "fc1", "fc2"}
    assert sum(report["winner"]["latency"][0]["histogram"]["counts"]) > 0
    shares = next(f for f in report["figures"] if f["title"] == "Latency of a run of 1 row")
    assert "an engine that does nothing" in [series["name"] for series in shares["series"]]
    assert len(list(ready.artifacts.keys("trials/shared"))) == 1  # the original was asked once for all of them

    again = optimize(ready, trials=2, passes=["prune"], max_accuracy_drop=0.1)
    assert again.cache_hit
    assert again.report["training"].keys() >= {"tuned-onnxruntime-fp32"}  # kept with what was computed before
    assert [row["quality"] for row in again.report["table"]] == [row["quality"] for row in report["table"]]


def _links(bench: Bench, found: Outcome) -> list[dict[str, Any]]:
    jobs = [bench.catalog.job(row["job"]) for row in found.report["table"]]
    return [link for job in jobs for link in job.spec["chain"]]


def _exact(ref: str) -> tuple[str, int]:
    name, _, number = ref.partition("@")
    return name, int(number)


def test_where_nothing_can_be_trained_precisions_are_raced(bench: Bench, stripes: Splits, tmp_path: Path) -> None:
    import torch

    from workers.nn.export import to_onnx

    bench.dataset("stripes", **stripes)
    source = bench.model("other", SimpleCNN(), (1, 28, 28))
    to_onnx(SimpleCNN(), source.signature, (torch.zeros(2, 1, 28, 28),), tmp_path / "net.onnx")
    bench.file("net", "onnx", tmp_path / "net.onnx", source.signature)
    found = optimize(bench, passes=["prune"], trials=3)
    assert [row["name"] for row in found.report["table"]] == ["plain-onnxruntime-fp32"]
    assert found.verdict == "unproven"  # 200 rows
    told = found.report["verdict"]
    assert told["samples_needed"] == 381
    assert set(told) == {
        "verdict", "told", "difference", "differences", "max_accuracy_drop", "samples_needed", "against", "split",
    }  # fmt: skip
    assert any("cannot be trained" in note for note in found.report["notes"])
    assert any("it takes 381" in note for note in found.report["notes"])
    job = bench.catalog.job(found.report["table"][0]["job"].partition("-")[0])
    assert job.progress.done == job.progress.total == len(found.report["table"]) + 2  # the judge, and the settings


def test_a_model_that_no_engine_takes_fails_with_the_reason(bench: Bench, stripes: Splits) -> None:
    bench.dataset("stripes", **stripes)
    bench.model("net", SimpleCNN(), (1, 20, 28))
    with pytest.raises(Conflict, match=r"the plain engine could not be made: .*20"):
        optimize(bench)


def test_a_dry_run_tells_and_does_nothing(ready: Bench) -> None:
    report = optimize(ready, dry_run=True, trials=5).report
    assert report["dry_run"]
    assert report["designs"] == 5
    assert report["estimate_s"] > 0
    assert report["parameters"]["before"] == 21840
    for passes in (["prune"], ["share"], ["quantize"]):
        report = optimize(ready, dry_run=True, trials=5, passes=passes).report
        assert "conv1" in report["layers"]
        assert (report["parameters"]["after"] < 21840) == (passes != ["quantize"])
    assert len(ready.catalog.versions("net")) == 1


def test_a_step_imports_no_torch() -> None:
    code = "import sys, workers.passes.optimize; assert not {'torch', 'nncf', 'openvino'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
