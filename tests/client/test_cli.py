"""The command line: exit codes, what goes to stdout and what to stderr, and the fields it sends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from enginesmith import cli
from enginesmith.cli_state import UsageError, pairs

from .stub import DONE, LOST, Answer, Stub, job, sse


class Ran:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(stub: Stub, capfd: pytest.CaptureFixture[str]):
    def command(*words: str, url: str | None = None) -> Ran:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--url", url or stub.url, *words])
        said = capfd.readouterr()
        return Ran(int(ended.value.code or 0), said.out, said.err)

    return command


def test_a_job_that_succeeds(stub: Stub, run) -> None:
    stub.on("POST", "/v1/jobs", Answer(202, job()))
    stub.on(
        "GET",
        "/v1/jobs/j1/events",
        sse(("1-0", "metrics", {"epoch": 1, "loss": 0.5}), ("2-0", "state", {"status": "succeeded"})),
    )
    stub.on("GET", "/v1/jobs/j1", Answer(200, DONE))
    ran = run("train", "net", "--dataset", "digits", "--epochs", "3", "--set", "lr=0.1", "--set", "extra.deep=true")
    assert (ran.code, ran.out) == (0, "net@2\n")
    assert "train net@1: net@2" in ran.err
    assert stub.asked[0].json == {
        "kind": "train", "model": "net", "dataset": "digits", "epochs": 3, "lr": 0.1, "extra": {"deep": True},
    }  # fmt: skip


def test_json_is_one_document_and_nothing_else(stub: Stub, run) -> None:
    stub.on("POST", "/v1/jobs", Answer(202, job()))
    stub.on("GET", "/v1/jobs/j1/events", sse(("2-0", "state", {"status": "succeeded"})))
    stub.on("GET", "/v1/jobs/j1", Answer(200, DONE))
    ran = run("convert", "net", "--target", "openvino", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out) == DONE
    ran = run("convert", "net", "--target", "openvino", "--no-wait", "--json")
    assert json.loads(ran.out)["status"] == "queued"


def test_a_job_that_fails_shows_why_and_what_to_do(stub: Stub, run) -> None:
    stub.on("POST", "/v1/jobs", Answer(202, job()))
    stub.on("GET", "/v1/jobs/j1/events", sse(("2-0", "state", {"status": "failed"})))
    stub.on("GET", "/v1/jobs/j1", Answer(200, LOST))
    ran = run("prune", "net", "--method", "channel", "--finetune-epochs", "2", "--set", "finetune.lr=0.01")
    assert (ran.code, ran.out) == (1, "")
    assert "x holds NaN" in ran.err
    assert "hint: clean it" in ran.err
    assert "x.3: NaN" in ran.err
    assert stub.asked[0].json["finetune"] == {"epochs": 2, "lr": 0.01}
    ran = run("jobs", "watch", "j1", "--json")
    assert ran.code == 1
    assert json.loads(ran.out)["error"]["code"] == "bad_dataset"


def test_refused(stub: Stub, run) -> None:
    body = {"status": 409, "code": "conflict", "detail": "net@1 is no engine", "hint": "convert it first"}
    stub.on("PUT", "/v1/deployments/d", Answer(409, body))
    ran = run("deploy", "d", "net@1")
    assert ran.code == 1
    assert ran.err.endswith("error: net@1 is no engine (409 conflict)\nhint: convert it first\n")


def test_deploy_with_a_canary_and_a_shadow(stub: Stub, run) -> None:
    record = {"name": "d", "model": "net@1", "status": "ready"}
    stub.on("PUT", "/v1/deployments/d", Answer(200, record))
    words = ["--canary", "net@2=12.5", "--max-p99-ms", "20", "--shadow", "net@3", "--threads", "2"]
    assert run("deploy", "d", "net@1", *words).code == 0
    assert stub.asked[0].json == {
        "model": "net@1",
        "threads": 2,
        "canary": {"model": "net@2", "percent": 12.5, "max_p99_ms": 20},
        "shadow": {"model": "net@3", "percent": 100},
    }
    for wrong in (["--canary", "net@2"], ["--canary", "net@2=many"], ["--shadow", "=5"], ["--max-p99-ms", "20"]):
        assert run("deploy", "d", "net@1", *wrong).code == 2
    assert len(stub.asked) == 1


def test_usage(run) -> None:
    assert run("train").code == 2
    assert run("nonsense").code == 2
    assert run("delete", "net").code == 2
    assert run("push", "/no/such/file", "--name", "net").code == 2
    assert "/no/such/file: No such file" in run("push", "/no/such/file", "--name", "net").err
    assert json.loads(run("--json", "push", "/no/such/file", "--name", "net").out)["error"]["hint"]
    assert run("convert", "net", "--target", "openvino", "--shape", "x").code == 2
    assert run("--help").code == 0
    assert run("--version").out == f"enginesmith {metadata.version('enginesmith')}\n"


@pytest.mark.parametrize(
    "words", [("keys", "create", "--url", "http://x"), ("--key=a", "backup", "f"), ("serve", "--key", "a")]
)
def test_no_service_is_named_for_what_asks_none(run, words: tuple[str, ...]) -> None:
    ran = run(*words)
    assert (ran.code, ran.out) == (2, "")
    assert "asks no service" in ran.err


@pytest.mark.parametrize(
    "words",
    [
        ("--rate", "1e9"),
        ("--rate", "nan"),
        ("--rate", "-1"),
        ("--rate", "100000", "--seconds", "3600"),
        ("--seconds", "0"),
        ("--seconds", "inf"),
        ("--concurrency", "0"),
        ("--concurrency", "100000"),
        ("--rows", "100000000"),
    ],
)
def test_a_bench_without_end_does_not_begin(stub: Stub, run, words: tuple[str, ...]) -> None:
    ran = run("bench", "net", *words)
    assert (ran.code, ran.out, stub.asked) == (2, "", [])
    assert words[0] in ran.err


def test_nobody_answers(run) -> None:
    with socket.socket() as held:  # bound, so that nobody else takes the port, and not listening
        held.bind(("127.0.0.1", 0))
        ran = run("models", "--json", url=f"http://127.0.0.1:{held.getsockname()[1]}")
    assert ran.code == 3
    assert "cannot reach" in json.loads(ran.out)["error"]["detail"]


def test_global_options_stand_anywhere() -> None:
    words = ["jobs", "list", "--json", "--url", "http://x", "--key=k", "--", "--json"]
    assert cli.hoist(words) == ["--json", "--url", "http://x", "--key=k", "jobs", "list", "--", "--json"]


def test_predict_reads_files_and_text(stub: Stub, run, tmp_path: Path) -> None:
    stub.on("POST", "/predict/d", Answer(200, {"model": "net@2", "outputs": {"logits": [[1.0]]}}))
    np.save(tmp_path / "x.npy", np.zeros((1, 2), np.float32))
    ran = run("predict", "d", str(tmp_path / "x.npy"), "--json", "--save", str(tmp_path / "y.npz"))
    assert json.loads(ran.out)["outputs"] == {"logits": [[1.0]]}
    assert np.load(tmp_path / "y.npz")["logits"].tolist() == [[1.0]]
    (tmp_path / "x.json").write_text('{"inputs": [[1, 2]]}')
    for given in (str(tmp_path / "x.json"), "[[1, 2]]"):
        assert run("predict", "d", given).code == 0
        assert stub.asked[-1].json == {"inputs": [[1, 2]]}


def test_push_with_a_manifest(stub: Stub, run, tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"w")
    (tmp_path / "net.json").write_text('{"name": "ignored", "labels": ["a"], "task": "classification"}')
    stub.on("POST", "/v1/models", Answer(202, job(kind="import")))
    ran = run("push", str(tmp_path / "net.pt"), "--name", "net", "--manifest", str(tmp_path / "net.json"), "--no-wait")
    assert (ran.code, ran.out) == (0, "j1\n")
    assert b'"labels": ["a"]' in stub.asked[0].body
    assert b"ignored" not in stub.asked[0].body


def test_lists(stub: Stub, run) -> None:
    stub.on("GET", "/v1/jobs", Answer(200, {"items": [DONE], "next_cursor": None}))
    assert "net@2" in run("jobs", "list", "--kind", "train").out
    assert stub.asked[0].query == "kind=train&limit=20"
    quality = {"name": "accuracy", "value": 0.98, "low": 0.97, "high": 0.99}
    version = {"ref": "net@2", "format": "torch", "bytes": 2048, "metrics": {"quality": quality}}
    stub.on("GET", "/v1/models/net", Answer(200, {"name": "net", "versions": [version]}))
    assert "0.9800 [0.9700, 0.9900]" in run("models", "net").out


def test_pairs() -> None:
    assert pairs(["a=1", "b.c=x", "b.d=[1]", "e=1=2"]) == {"a": 1, "b": {"c": "x", "d": [1]}, "e": "1=2"}
    with pytest.raises(UsageError):
        pairs(["a"])
    with pytest.raises(UsageError):
        pairs(["a=1", "a.b=2"])


def test_serve_becomes_the_service(tmp_path: Path) -> None:
    """Its options, its exit code, and no module of the current folder in place of ours."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise SystemExit(99)")
    command = [
        sys.executable,
        "-P",
        "-m",
        "enginesmith.cli",
        "serve",
        "--host",
        "203.0.113.1",
        "--data",
        str(tmp_path / "d"),
    ]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("ENGINESMITH_")}
    ran = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 1
    assert "loopback" in ran.stderr
    assert ran.stdout == ""
