"""What commands print of what jobs have found: the version made, tables, verdicts, and the exit codes of those."""

from __future__ import annotations

import json
from typing import Any

import pytest
from enginesmith.cli_state import NARROW
from enginesmith.cli_words import allowed, busy, cell, change, difference, latency, times
from enginesmith.records import Job, Version

from .stub import LOST, Answer, Stub, answers, job

CHANGED = {"name": "accuracy", "difference": -0.01, "low": -0.02, "high": 0.005, "n": 360, "confidence": 0.95}


def quality(value: float, **more: Any) -> dict[str, Any]:
    found = {"name": "accuracy", "value": value, "low": value - 0.01, "high": value + 0.01, "n": 360, "split": "test"}
    return found | {"dataset": "d@1", "confidence": 0.95} | more


def timed(p50_ms: float, runtime: str = "torch", batch: int = 1, load: float = 0.5) -> dict[str, Any]:
    return {"runtime": runtime, "batch": batch, "p50_ms": p50_ms, "threads": 2, "load_1m": load, "device": "cpu"}


def version(stub: Stub, number: int, value: float | None = None, **more: Any) -> None:
    record = {"ref": f"net@{number}", "name": "net", "version": number, "format": "torch", "verdict": None}
    metrics = {"quality": value and quality(value), "latency": [timed(0.2), timed(2.5, batch=64)]}
    record |= {"metrics": metrics, "parameters": 1000 * number, "macs": 500, "bytes": 2048 * number, "sparsity": 0.0}
    stub.on("GET", f"/v1/models/net/versions/{number}", Answer(200, record | {"parent": None} | more))


def test_the_version_that_was_made(stub: Stub, run) -> None:
    version(stub, 1, 0.98)
    version(stub, 2, 0.97, parameters=400, bytes=1024)
    answers(stub, "prune", {"quality_before": 0.98, "quality_after": 0.97, "quality_change": CHANGED,
                            "channels": {"a": {"before": 9, "after": 4}, "b": {"before": 9, "after": 9}},
                            "left_alone": {"c": "it makes the outputs"},
                            "eager_speed": {"batch": 1, "ratio": 1.02, "low": 0.97, "high": 1.1}},
            dataset="d@1")  # fmt: skip
    code, out, err = run("prune", "net", "--method", "channel")
    assert (code, out) == (0, "net@2\n")  # what a script reads
    for line in (
        "accuracy      0.9800 [0.9700, 0.9900] → 0.9700 [0.9600, 0.9800] on 360 test rows",
        "difference    -1.00 points [-2.00, +0.50], on the same rows",
        "parameters    1,000 → 400 (-60%)",
        "size          2.0 KiB → 1.0 KiB (-50%)",
        "median ms     0.2 at batch 1  2.5 at batch 64 (torch eager, 2 threads)",
        "speed-up      1.02× [0.97, 1.10] at batch 1 (no difference shown) in torch eager; in brackets",
        "1 of 3 layers changed: a",
        "next: enginesmith convert net@2 --dataset d@1 --target openvino",
        "all versions: enginesmith models net",
    ):
        assert line in err
    assert "busy" not in err
    out, err = run("prune", "net", "--method", "channel", "--json")[1:]
    assert (json.loads(out)["id"], err) == ("j1", "")


def test_a_before_of_other_rows_is_not_shown(stub: Stub, run) -> None:
    version(stub, 1, metrics={"quality": quality(0.98, dataset="other@1")})
    version(stub, 2, 0.97)
    answers(stub, "train", {})
    assert "accuracy      0.9700 [0.9600, 0.9800] on 360 test rows" in run("train", "net", "--dataset", "d")[2]
    evaluated = [{"quality": quality(0.5, split="val")}, {"quality": quality(0.9)}]
    version(stub, 1, evaluations=evaluated)
    assert "0.9000 [0.8900, 0.9100] → 0.9700" in run("train", "net", "--dataset", "d")[2]
    stub.on("GET", "/v1/models/net/versions/2", Answer(404, {"status": 404, "code": "x", "detail": "gone"}))
    code, out, err = run("train", "net", "--dataset", "d")  # deleted since: the job is done all the same
    assert (code, out) == (0, "net@2\n")
    assert "enginesmith models net" in err


def test_an_engine_and_its_verdict(stub: Stub, run) -> None:
    version(stub, 1, 0.98, format="onnx", parent="net@0")
    version(stub, 2, 0.97, format="openvino", verdict="unproven")
    report = {
        "quality_change": CHANGED, "quantized": {"max_accuracy_drop": 0.01}, "parent_quality": quality(0.98),
        "latency": [timed(0.07, "openvino", load=99.0)],
    }  # fmt: skip
    answers(stub, "convert", report, verdict="unproven")
    code, _, err = run("convert", "net@1", "--target", "openvino", "--precision", "int8")
    assert code == 5
    for line in (
        "verdict       unproven; 1 point may be lost. Compared with net@0, which net@1 was quantized from",
        "median ms     0.07 at batch 1 (openvino, 2 threads)",
        "0.2 at batch 1  2.5 at batch 64 (torch eager, 2 threads, when net@1 was made)",
        "the machine was busy while this was measured (load 99.0)",
        "next: enginesmith deploy net net@2 --force   (unproven: the samples are too few",
    ):
        assert line in err


def test_a_quantized_version(stub: Stub, run) -> None:
    version(stub, 1, 0.98)
    version(stub, 2, 0.98, format="onnx", details={"quantized": {"target": "openvino"}})
    guard = {"split": "val", "max_accuracy_drop": 0.01, "difference": CHANGED, "told": "Unproven: …"}
    answers(stub, "quantize", {"guard": guard, "bytes": {"before": 4096, "after": 1024}}, dataset="d@1")
    code, _, err = run("quantize", "net", "--target", "openvino", "--dataset", "d")
    assert code == 0
    for line in (
        "none; on the val split -1.00 points [-2.00, +0.50]; 1 point may be lost",
        "4.0 KiB → 1.0 KiB",
        "convert net@2 --dataset d@1 --target openvino --precision int8",
    ):
        assert line in err
    told = guard | {"told": "Rejected: far off."}
    for report in ({"guard": told}, {"guard": guard, "verdict": told | {"against": "net@1"}}):
        answers(stub, "quantize", report, verdict="rejected")
        code, _, err = run("quantize", "net", "--target", "openvino", "--dataset", "d")
        assert code == 4
        assert "Rejected: far off. Compared with net@1 on the val split" in err


SENSITIVITY = {
    "split": "val", "rows": 288, "name": "accuracy", "whole": 0.97, "amounts": [0.25, 0.5], "not_measured": [],
    "layers": {
        "conv1": {"with": ["conv3", "fc"], "values": [0.96, 0.4]}, "conv2": {"with": [], "values": [0.95, None]},
    },
}  # fmt: skip


def test_sensitivity_is_a_table(stub: Stub, run) -> None:
    notes = ["Leave them out of `layers`."]
    answers(stub, "prune", {"dry_run": True, "layers": {}, "sensitivity": SENSITIVITY, "notes": notes}, model=None)
    code, out, err = run("prune", "net", "--method", "channel", "--sensitivity", "--dry-run", "--dataset", "d")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["layer", "25", "%", "50", "%"] in rows
    assert ["conv1", "0.9600", "0.4000"] in rows
    assert ["conv2", "0.9500", "–"] in rows
    assert "conv1 with conv3, fc" in out
    assert "note: Leave them out of `--layer`." in err
    version(stub, 2)
    answers(stub, "prune", {"sensitivity": SENSITIVITY})
    code, out, err = run("prune", "net", "--method", "channel", "--sensitivity", "--dataset", "d")
    assert out == "net@2\n"
    assert "conv1  0.9600  0.4000" in err


def test_a_dry_run_of_share(stub: Stub, run) -> None:
    layers = {"fc": {"parameters": {"before": 2304, "after": 400}, "rank": [1, 5]}, "a": {"left_alone": "too small"}}
    answers(stub, "share", {"dry_run": True, "layers": layers}, model=None)
    out = run("share", "net", "--method", "low_rank", "--dry-run")[1]
    for line in ("2,304 → 400 (-83%)", "1, 5", "left alone: too small", "1 of 2 layers would change: fc"):
        assert line in out
    assert "before=" not in out
    said = "1 of 2 convolution and linear layers changed; 3 % of their weights were in those."
    answers(stub, "share", {"dry_run": True, "layers": layers, "notes": [said]}, model=None)
    out, err = run("share", "net", "--method", "low_rank", "--dry-run")[1:]
    assert ("1 of 2" in out, err.count("1 of 2")) == (False, 1)


def test_the_table_of_optimize_is_narrow(stub: Stub, run) -> None:
    long = "up to 60 % of the channels less, globally · grouped conv in 4 groups · int8 · openvino"
    row = {
        "name": "design-1", "design": long, "quality": 0.96875, "gain": 1.0934, "speedup": 1.0934, "speedup_low": 1.07,
        "speedup_high": 1.17, "latency_ms": 0.048, "parameters": 23050.0, "macs": 460416.0, "bytes": 119823.0,
    }  # fmt: skip
    base = row | {"name": "plain-openvino-fp32", "design": "as it is · fp32 · openvino", "gain": 1.0, "speedup": None}
    ratio = {"ratio": 1.09, "low": 1.07, "high": 1.15}
    front = {"name": "design-1", "design": long, "model": "net@2", "quality": quality(0.98), "bytes": 119823,
             "speedup": {"1": ratio, "32": ratio}, "verdict": "accepted"}  # fmt: skip
    verdict = {"told": "Accepted: it is.", "against": "plain-openvino-fp32"}
    report = {"targets": ["openvino"], "batch": 1, "table": [base, row], "front": [front], "verdict": verdict,
              "winner": {"latency": [timed(0.05, "openvino", load=99.0)]}}  # fmt: skip
    answers(stub, "optimize", report, verdict="accepted")
    code, out, err = run("optimize", "net", "--dataset", "d")
    assert code == 0
    assert max(map(len, out.splitlines())) <= NARROW
    assert out.count("1.09× [1.07, 1.17]") == 1
    assert "plain-openvino" not in out
    assert "compared with the original, as it is · fp32 · openvino" in out
    for word in ("gain", "status", "macs", "name"):
        assert word not in out.splitlines()[0]
    assert "machine was busy" in err


def test_a_report_is_read_on_one_screen(stub: Stub, run) -> None:
    version(stub, 1, 0.98)
    version(stub, 2, 0.97)
    done = job(
        "succeeded", kind="prune", dataset="d@1", started_at="2026-01-01T00:00:00Z", finished_at="2026-01-01T00:01:30Z",
        result={"model": "net@2", "verdict": None, "report": {"quality_change": CHANGED, "notes": ["n" * 400]}},
    )  # fmt: skip
    stub.on("GET", "/v1/jobs/j1/report", Answer(200, done))
    code, out, err = run("report", "j1")
    assert (code, err) == (0, "")
    assert out.startswith("job j1 · prune net@1 on d@1 · succeeded · took 1.5 min\nnet@2\n")
    for line in ("-1.00 points", "n" * 400, "enginesmith report j1 --json"):
        assert line in out
    assert json.loads(run("report", "j1", "--json")[1]) == done
    stub.on("GET", "/v1/jobs/j1/report", Answer(200, LOST))
    code, out, _ = run("report", "j1")
    assert code == 0
    assert "error: x holds NaN\nhint: clean it\n" in out
    stub.on("GET", "/v1/jobs/j1/report", Answer(200, job("running")))
    assert "enginesmith jobs watch j1" in run("report", "j1")[1]


def test_the_job_is_named_while_it_is_waited_for(stub: Stub, run) -> None:
    answers(stub, "train", {"notes": ["n" * 400]})
    _, out, err = run("train", "net", "--dataset", "d")
    first = err.splitlines()[0]
    assert first.startswith("job j1: Ctrl-C ends the waiting, not the job")
    assert "enginesmith jobs watch j1" in first
    assert "jobs cancel" in first
    assert "… (whole: enginesmith report j1)" in err
    assert run("jobs", "watch", "j1")[1] == out == "net@2\n"
    assert run("train", "net", "--dataset", "d", "--json")[2] == ""


@pytest.mark.parametrize(("verdict", "code"), [("accepted", 0), ("rejected", 4), ("unproven", 5)])
@pytest.mark.parametrize("words", [("evaluate", "net", "--dataset", "d"), ("jobs", "watch", "j1")])
def test_exit_codes_of_verdicts(stub: Stub, run, words: tuple[str, ...], verdict: str, code: int) -> None:
    answers(stub, "evaluate", {"model": "net@2"}, verdict=verdict)
    assert run(*words)[0] == code
    assert run(*words, "--json")[0] == code


def test_words() -> None:
    assert change(None, None) == ""
    assert change(10, None) == ""
    assert change(None, 10) == change(10, 10) == "10"
    assert change(0, 10) == "0 → 10"
    assert change(1000, 997) == "1,000 → 997 (-0.3%)"
    assert cell({"before": "a", "after": "b"}) == "a → b"
    assert cell({"low": 1, "high": 2.5}) == "low=1 high=2.5"
    assert times({"ratio": 1.0, "low": 1.0, "high": 1.0}) == "1.00×"
    assert times({"1": 3.0, "8": {"ratio": 2.0, "low": 1.5, "high": 2.5}}) == "3.00× at 1  2.00× [1.50, 2.50] at 8"
    assert difference({"name": "r2", "difference": -0.01, "low": -0.02, "high": 0.0}) == "-0.0100 [-0.0200, +0.0000]"
    assert allowed(0.02, CHANGED) == "2 points"
    assert allowed(0.02, {"name": "r2"}) == "0.02"
    assert latency([timed(0.5), {"batch": 2}]) == "0.5 at batch 1"


def test_a_load_that_the_measurement_makes_itself_is_no_remark() -> None:
    assert busy([timed(1, load=2.9)], cores=2) is None
    assert busy([timed(1, load=3.9)], cores=None) is None
    assert busy([timed(1, load=3.1)], cores=2) is not None
    assert busy([timed(1, load=4.1)], cores=None) is not None
    assert busy(None, 2) is busy([{}], 2) is None


def test_what_a_version_and_a_job_look_like_in_a_session() -> None:
    found = Version(
        ref="net@2", format="torch", parameters=21840, metrics={"quality": quality(0.98)}, files={"f": "x" * 9000}
    )
    assert repr(found) == "<Version net@2: torch, 21,840 parameters, accuracy 0.9800>"
    assert found.raw["files"]["f"] == "x" * 9000
    assert repr(Version()) == "<Version None: >"
    assert repr(Job(job("succeeded", result={"model": "net@2"}))) == "<Job j1: train net@1 succeeded → net@2>"
