"""The command line and the client for what makes networks smaller and searches: fields sent, tables shown, recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from enginesmith import Client, EnginesmithError, OtherNetwork
from enginesmith.cli_state import UsageError
from enginesmith.cli_tuning import spaces
from enginesmith.replaying import differing

from .stub import Answer, Stub, answers, job, sse

DIFFERENCE = {"name": "accuracy", "difference": -0.003, "low": -0.011, "high": 0.005, "n": 10_000, "confidence": 0.95}


def test_fields_of_every_kind(stub: Stub, run) -> None:
    sent = {
        ("prune", "net", "--method", "channel", "--importance", "taylor", "--steps", "3", "--schedule", "gradual",
         "--sensitivity", "--dataset", "d"):
            {"method": "channel", "importance": "taylor", "steps": 3, "schedule": "gradual", "sensitivity": True,
             "dataset": "d"},
        ("share", "net", "--method", "grouped_conv", "--groups", "4", "--finetune-epochs", "2", "--finetune-lr", "0.1"):
            {"method": "grouped_conv", "groups": 4, "finetune": {"epochs": 2, "lr": 0.1}},
        ("quantize", "net", "--target", "openvino", "--dataset", "d", "--mode", "qat", "--max-accuracy-drop", "0.01"):
            {"target": "openvino", "dataset": "d", "mode": "qat", "max_accuracy_drop": 0.01},
        ("train", "net", "--dataset", "d", "--teacher", "big@2", "--alpha", "0.7", "--temperature", "2"):
            {"dataset": "d", "teacher": "big@2", "alpha": 0.7, "temperature": 2.0},
        ("search", "net", "--dataset", "d", "--space", "train.lr=0.01,0.1", "--space", "prune.amount=0.2..0.8",
         "--step", "train epochs=2", "--step", "prune method=channel finetune.epochs=1", "--sampler", "tpe",
         "--trials", "9", "--objective", "quality", "--objective", "parameters"):
            {"dataset": "d", "space": {"train.lr": [0.01, 0.1], "prune.amount": {"low": 0.2, "high": 0.8}},
             "chain": [{"kind": "train", "epochs": 2}, {"kind": "prune", "method": "channel",
                                                         "finetune": {"epochs": 1}}],
             "sampler": "tpe", "trials": 9, "objectives": ["quality", "parameters"]},
        ("search", "net", "--dataset", "d", "--space", "1.train.lr=0.001..0.3:log", "--space", "train.lr=1"):
            {"dataset": "d", "space": {"1.train.lr": {"low": 0.001, "high": 0.3, "log": True}, "train.lr": [1]},
             "chain": [{"kind": "train"}]},
        ("search", "net", "--dataset", "d", "--estimator", "random_forest", "--param", "n_jobs=1", "--cv", "3",
         "--space", "max_depth=[5,null]"):
            {"dataset": "d", "estimator": "random_forest", "params": {"n_jobs": 1}, "cv": 3,
             "space": {"max_depth": [5, None]}},
        ("optimize", "net", "--dataset", "d", "--target", "openvino", "--max-accuracy-drop", "0.01", "--trials", "5",
         "--pass", "prune", "--pass", "quantize", "--time-limit", "60", "--set", "max_batch=8"):
            {"dataset": "d", "targets": ["openvino"], "max_accuracy_drop": 0.01, "trials": 5,
             "passes": ["prune", "quantize"], "time_limit_s": 60.0, "max_batch": 8},
        ("evaluate", "net", "--dataset", "d", "--baseline", "net@1", "--max-accuracy-drop", "0.02"):
            {"dataset": "d", "baseline": "net@1", "max_accuracy_drop": 0.02},
    }  # fmt: skip
    stub.on("POST", "/v1/jobs", Answer(202, job()))
    for words, fields in sent.items():
        code, _, err = run(*words, "--no-wait")
        assert code == 0, err
        assert stub.asked[-1].json == {"kind": words[0], "model": "net"} | fields


def test_spaces() -> None:
    assert spaces(["a=adam, sgd", "b=16..128:step=16", "c=1e-3..0.1:log", "d=-1..1", "e=1..9:type=int"]) == {
        "a": ["adam", "sgd"],
        "b": {"low": 16, "high": 128, "step": 16},
        "c": {"low": 0.001, "high": 0.1, "log": True},
        "d": {"low": -1, "high": 1},
        "e": {"low": 1, "high": 9, "type": "int"},
    }
    assert spaces(['a=["..",1]', "b=1.5..2"]) == {"a": ["..", 1], "b": {"low": 1.5, "high": 2}}
    for wrong in (
        "a=0.1..",
        "a=..1",
        "a",
        "a=",
        "=1",
        "a=1..2:lag",
        "a=1..2:step",
        "a=1..2:log=3",
        "a=1..2:step=x",
        "a=1.2.3..4",
        "a=[1",
    ):
        with pytest.raises(UsageError):
            spaces([wrong])
    with pytest.raises(UsageError, match="twice"):
        spaces(["a=1", "a=2"])


def test_a_space_that_names_no_job(run) -> None:
    code, _, err = run("search", "net", "--dataset", "d", "--space", "lr=1")
    assert code == 2
    assert "train.lr" in err


def test_a_dry_run_is_a_table(stub: Stub, run) -> None:
    report = {
        "dry_run": True, "layers": {"conv1": "it makes the outputs", "conv2": {"before": 20, "after": 10}},
        "parameters": {"before": 21840, "after": 5000}, "macs": {"before": 10, "after": None}, "estimate_s": 150.0,
        "notes": ["no data set: nothing is trained"],
    }  # fmt: skip
    answers(stub, "prune", report)
    code, out, err = run("prune", "net", "--method", "channel", "--dry-run")
    assert code == 0
    assert stub.asked[0].json["dry_run"] is True
    for line in ("conv1", "it makes the outputs", "21,840 → 5,000 (-77%)", "about 2 min", "nothing was changed"):
        assert line in out
    assert "note: no data set" in err
    code, out, err = run("prune", "net", "--method", "channel", "--dry-run", "--json")
    assert json.loads(out)["result"]["report"] == report
    assert err == ""


def test_optimize_tells_the_verdict_the_candidates_and_what_is_next(stub: Stub, run) -> None:
    report = {
        "max_accuracy_drop": 0.01, "notes": ["Unproven: told", "a note"],
        "verdict": {"verdict": "unproven", "told": "Unproven: told", "difference": DIFFERENCE, "samples_needed": 9},
        "table": [
            {"name": "t0", "design": "fp32", "job": "x", "quality": 0.91, "speedup": 1.0, "bytes": 2048,
             "why_not": None},
            {"name": "t1", "design": "prune 0.5 + int8", "quality": 0.9, "gain": 3.1, "speedup": 3.1,
             "speedup_low": 2.9, "speedup_high": 3.2, "bytes": None},
            {"name": "t2", "design": "gone", "quality": None, "gain": None, "why_not": "too slow at a quick look"},
        ],
        "front": [{"model": "net@2", "design": "prune 0.5 + int8", "quality": {"name": "accuracy", "value": 0.9,
                   "low": 0.89, "high": 0.91}, "speedup": {"1": 3.1}, "bytes": 999, "verdict": "unproven"}],
        "settings": {"recommended": {"instances": 2, "threads": 4, "max_batch": 32}},
    }  # fmt: skip
    answers(stub, "optimize", report, verdict="unproven", warnings=["the test split has 360 rows"])
    code, out, err = run("optimize", "net", "--dataset", "d")
    assert code == 5  # unproven: a script sees that it cannot be deployed as it is
    assert "warning: the test split has 360 rows" in err
    assert "note: a note" in err
    assert out.count("Unproven: told") == 1
    for line in (
        "prune 0.5 + int8",
        "2.0 KiB",
        "3.10× [2.90, 3.20]",
        "0.9000 [0.8900, 0.9100]",
        "3.10× at 1",
        "accuracy (test)",
    ):
        assert line in out
    assert out.endswith("net@2\nnext: enginesmith deploy net net@2 --instances 2 --threads 4 --max-batch 32 --force\n")
    assert "only with --force, because the samples are too few to show" in out
    assert "not measured: gone: too slow at a quick look" in out
    answers(stub, "optimize", report | {"front": "?", "table": {}}, verdict="accepted")
    out = run("optimize", "net", "--dataset", "d")[1]
    assert out.endswith("deploy net net@2 --instances 2 --threads 4 --max-batch 32\n")


def test_evaluate_tells_both_and_the_difference(stub: Stub, run) -> None:
    quality = {"name": "accuracy", "value": 0.9, "low": 0.89, "high": 0.91}
    report = {
        "model": "net@2", "quality": quality, "latency": [{"batch": 1, "p50_ms": 0.5}], "baseline": "net@1",
        "baseline_quality": quality, "baseline_latency": [], "difference": DIFFERENCE, "speedup": {"1": 2.5, "8": 1.1},
        "speedup_spread": {"1": {"ratio": 2.5, "low": 2.25, "high": 2.75},
                           "8": {"ratio": 1.1, "low": 0.9, "high": 1.2}},
        "verdict": {"verdict": "unproven", "difference": DIFFERENCE, "told": "Unproven: too few."},
        "notes": ["Unproven: too few."],
    }  # fmt: skip
    put(stub, version("net@1", bytes=4096), version("net@2", bytes=1024))
    answers(stub, "evaluate", report, verdict="unproven")
    code, out, err = run("evaluate", "net", "--dataset", "d", "--baseline", "net@1")
    assert code == 5
    assert (out.count("Unproven: too few."), err.count("Unproven: too few.")) == (1, 0)
    answers(stub, "evaluate", report | {"verdict": "unproven", "notes": []}, verdict="unproven")
    out = run("evaluate", "net", "--dataset", "d", "--baseline", "net@1")[1]
    for line in (
        "1.10× [0.90, 1.20] at batch 8 (no difference shown)",
        "size: 4.0 KiB → 1.0 KiB (-75%)",
        "0.9000 [0.8900",
        "0.5 at batch 1",
        "2.50× [2.25, 2.75] at batch 1",
        "-0.30 points [-1.10, +0.50]",
        "unproven",
    ):
        assert line in out


def test_search_tells_the_best(stub: Stub, run) -> None:
    report = {
        "trials": {"asked": 1, "complete": 1},
        "history": [{"trial": 0, "params": {"train.lr": 0.1}, "values": {"quality": 0.9}, "status": "complete"}],
        "best": {"number": 0, "params": {"train.lr": 0.1}, "values": {"quality": 0.9}},
        "quality": {"name": "accuracy", "value": 0.88, "low": 0.8, "high": 0.9},
        "importances": {"quality": {"train.epochs": 0.25, "train.lr": 0.75}, "bytes": None},
    }  # fmt: skip
    answers(stub, "search", report)
    out = run("search", "net", "--dataset", "d", "--space", "train.lr=0.1")[1]
    for line in (
        "best: train.lr=0.1", "values: quality=0.9", "mattered for quality: train.lr 75%  train.epochs 25%",
        "test split: accuracy 0.8800", "net@2",
    ):  # fmt: skip
        assert line in out


def test_trials_are_listed_with_their_values(stub: Stub, run) -> None:
    trial = job(
        "succeeded", kind="trial", parent="j0", result={"model": None, "report": {"values": {"quality": 0.912}}}
    )
    stub.on("GET", "/v1/jobs", Answer(200, {"items": [trial], "next_cursor": None}))
    out = run("jobs", "list", "--parent", "j0")[1]
    assert "quality 0.912" in out
    assert stub.asked[0].query == "parent=j0&limit=20"


def test_a_report_into_a_file(stub: Stub, run, tmp_path: Path) -> None:
    stub.on("GET", "/v1/jobs/j1/report", Answer(200, "<!doctype html>é".encode(), {"Content-Type": "text/html"}))
    code, out, _ = run("report", "j1", "--html", str(tmp_path / "r.html"))
    assert (code, out) == (0, f"{tmp_path / 'r.html'}\n")
    assert (tmp_path / "r.html").read_text("utf-8") == "<!doctype html>é"
    assert stub.asked[0].headers["Accept"] == "text/html"
    stub.on("GET", "/v1/jobs/j1/report", Answer(200, {"id": "j1"}))
    assert json.loads(run("report", "j1", "--json")[1]) == {"id": "j1"}


def test_client_has_words_for_both(stub: Stub, client: Client) -> None:
    answers(stub, "optimize", {}, verdict="accepted")
    found = client.optimize("net", "d", trials=3, max_accuracy_drop=0.02)
    assert (found.result.model, found.result.verdict) == ("net@2", "accepted")
    assert stub.asked[0].json == {
        "kind": "optimize", "model": "net", "dataset": "d", "trials": 3, "max_accuracy_drop": 0.02,
    }  # fmt: skip
    client.search("net", "d", {"train.lr": [0.1]}, chain=[{"kind": "train"}], wait=False)
    assert stub.asked[-1].json["space"] == {"train.lr": [0.1]}


# Recipes done again ---------------------------------------------------------------------------------------------------

SIGNATURE = {"inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 4]}], "outputs": []}


def version(ref: str, architecture: str | None = "a", **more: Any) -> dict[str, Any]:
    name, number = ref.split("@")
    found = {"ref": ref, "name": name, "version": int(number), "format": "torch", "architecture": architecture}
    files = {"architecture.json": architecture} if architecture else {}
    return found | {"files": files, "signature": SIGNATURE, "parameters": 10} | more


def put(stub: Stub, *versions: dict[str, Any]) -> None:
    for one in versions:
        stub.on("GET", f"/v1/models/{one['name']}/versions/{one['version']}", Answer(200, one))
    name = versions[0]["name"]
    stub.on("GET", f"/v1/models/{name}", Answer(200, {"name": name, "versions": list(versions)}))


CHAIN = [
    {"kind": "train", "dataset": "d@1", "epochs": 2},
    {"kind": "prune", "dataset": "d@1", "method": "channel", "finetune": {"epochs": 1, "teacher": "net@2"}},
    {"kind": "convert", "target": "openvino", "teacher": "net@1"},
]


@pytest.fixture
def kitchen(stub: Stub) -> Stub:
    """net@4 was made from net@1 in three steps; new@1 is another checkpoint; every job makes the next version of it."""
    recipe = {"model": "net@4", "root": "net@1", "architecture": "a", "chain": CHAIN, "complete": True, "missing": None}
    stub.on("GET", "/v1/models/net/versions/4/recipe", Answer(200, recipe | {"made": ["net@2", "net@3", "net@4"]}))
    put(stub, version("net@1"), version("net@4", None, format="openvino"))
    put(stub, version("new@1"), version("new@2", "other"), version("new@3"), version("new@4"), version("new@5"))
    done = [
        job("succeeded", id=f"j{n}", result={"model": f"new@{n}", "verdict": None, "report": {}}) for n in (3, 4, 5)
    ]
    place = iter(done * 3)
    stub.on("POST", "/v1/jobs", lambda asked: Answer(202, next(place) | {"model": asked.json["model"]}))
    for found in done:
        stub.on("GET", f"/v1/jobs/{found['id']}", Answer(200, found))
        stub.on("GET", f"/v1/jobs/{found['id']}/events", sse(("1-0", "state", {"status": "succeeded"})))
    return stub


def submitted(stub: Stub) -> list[Any]:
    return [asked.json for asked in stub.asked if asked.method == "POST"]


def test_replay_submits_the_chain_one_after_the_other(kitchen: Stub, client: Client) -> None:
    assert client.replay("net@4", "new@1").ref == "new@5"
    train, prune, convert = submitted(kitchen)
    assert train == CHAIN[0] | {"model": "new@1"}
    # What taught in the original chain was made by it: here its counterpart teaches.
    assert prune == CHAIN[1] | {"model": "new@3", "finetune": {"epochs": 1, "teacher": "new@3"}}
    assert convert == CHAIN[2] | {"model": "new@4", "teacher": "new@1"}


def test_replay_with_another_data_set_from_the_command_line(kitchen: Stub, run) -> None:
    code, out, err = run("replay", "net@4", "--on", "new@1", "--dataset", "mine")
    assert (code, out) == (0, "new@5\n"), err
    assert [asked.get("dataset") for asked in submitted(kitchen)] == ["mine", "mine", None]
    assert err.count("✓") == 3
    code, out, _ = run("replay", "net@4", "--on", "new@1", "--json")
    assert json.loads(out)["ref"] == "new@5"


def test_a_bare_name_is_its_newest_of_that_architecture(kitchen: Stub, client: Client) -> None:
    put(kitchen, version("new@1"), version("new@2", "other"))
    kitchen.on("GET", "/v1/models/new/versions/5", Answer(200, version("new@5")))
    client.replay("net@4", "new")
    assert submitted(kitchen)[0]["model"] == "new@1"


def test_a_bare_name_is_an_upload_and_not_what_jobs_made_of_it(kitchen: Stub, client: Client, run) -> None:
    put(kitchen, version("new@1"), version("new@2"), version("new@3", parent="new@2"), version("new@5", parent="new@4"))
    client.replay("net@4", "new")
    assert submitted(kitchen)[0]["model"] == "new@2"
    put(kitchen, version("new@1"), version("new@5", parent="new@4"))
    code, out, err = run("replay", "net@4", "--on", "new")
    assert (code, out) == (0, "new@5\n")
    assert submitted(kitchen)[-3]["model"] == "new@1"
    assert "the recipe of net@4, from new@1 on\n" in err
    put(kitchen, version("new@5", parent="new@1"))
    with pytest.raises(EnginesmithError, match="no uploaded version any more: say which one, such as new@5"):
        client.replay("net@4", "new")
    client.replay("net@4", "new@5")  # by its number any version
    assert submitted(kitchen)[-3]["model"] == "new@5"


def test_another_architecture_is_refused_with_what_differs(kitchen: Stub, client: Client, run) -> None:
    put(kitchen, version("new@2", "other", parameters=12))
    one = {"graph": {"modules": {"fc": {"type": "Linear", "kwargs": {"out_features": 10}}}, "nodes": [1, 2]}}
    other = {"graph": {"modules": {"fc": {"type": "Linear", "kwargs": {"out_features": 12}}}, "nodes": [1]}}
    kitchen.on("GET", "/v1/models/net/versions/1/files/architecture.json", Answer(200, one))
    kitchen.on("GET", "/v1/models/new/versions/2/files/architecture.json", Answer(200, other))
    with pytest.raises(OtherNetwork) as refused:
        client.replay("net@4", "new@2")
    assert refused.value.differences == [
        "parameters: 10 there, 12 here",
        "graph.modules.fc.kwargs.out_features: 10 there, 12 here",
        "graph.nodes: [1, 2] there, [1] here",
    ]
    for on in ("new@2", "new"):
        code, _, err = run("replay", "net@4", "--on", on)
        assert code == 1
        assert "out_features: 10 there, 12 here" in err
    assert submitted(kitchen) == []


def test_the_order_of_fields_makes_no_other_architecture(kitchen: Stub, client: Client) -> None:
    put(kitchen, version("new@2", "other"), version("new@5"))
    kitchen.on("GET", "/v1/models/net/versions/1/files/architecture.json", Answer(200, {"a": 1, "b": 2}))
    kitchen.on("GET", "/v1/models/new/versions/2/files/architecture.json", Answer(200, {"b": 2, "a": 1}))
    client.replay("net@4", "new@2")
    assert submitted(kitchen)[0]["model"] == "new@2"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"complete": False, "missing": "net@2"}, "net@2 was deleted"),
        ({"chain": [], "made": []}, "nothing to do again"),
        ({"root": "net@4"}, "nothing to do again"),
    ],
)
def test_what_cannot_be_done_again(kitchen: Stub, client: Client, change: dict[str, Any], told: str) -> None:
    recipe = {"model": "net@4", "root": "net@1", "architecture": "a", "chain": CHAIN, "made": ["a", "b", "c"]}
    kitchen.on("GET", "/v1/models/net/versions/4/recipe", Answer(200, recipe | {"complete": True} | change))
    with pytest.raises(EnginesmithError, match=told):
        client.replay("net@4", "new@1")
    assert submitted(kitchen) == []


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"format": "openvino"}, "format openvino"),
        ({"parameters": 11}, "parameters: 10 there, 11 here"),
        ({"signature": {"inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 5]}]}}, "input x"),
    ],
)
def test_formats_without_an_architecture(kitchen: Stub, client: Client, more: dict[str, Any], told: str) -> None:
    put(kitchen, version("net@1", None), version("net@4", None))
    put(kitchen, version("new@1", None, **more))
    with pytest.raises(OtherNetwork, match=told):
        client.replay("net@4", "new@1")


def test_differing() -> None:
    assert list(differing({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]})) == ["a[1].b: 2 there, 3 here"]
    assert list(differing({"a": 1}, {"b": 1})) == ["a: 1 there, nothing here", "b: nothing there, 1 here"]
    assert list(differing({"a": None}, {"a": None})) == []
