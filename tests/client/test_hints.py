"""What the service says in routes and fields, the command line says in commands and options; and errors once."""

from __future__ import annotations

import pytest
from enginesmith.cli_hints import in_commands, meant

from .stub import Answer, Stub

ENUM = "Input should be 'l1_unstructured', 'random_unstructured', 'ln_structured', 'channel' or 'n_m'"


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (
            'convert it first: POST /v1/jobs {"kind": "convert", "model": "net@1", "target": "openvino"}',
            "convert it first: `enginesmith convert net@1 --target openvino`",
        ),
        ("POST /v1/jobs/ab12/retry starts it again", "`enginesmith jobs retry ab12` starts it again"),
        ("GET /v1/jobs?parent= this job lists the trials", "`enginesmith jobs list --parent JOB` lists the trials"),
        ("GET /v1/jobs/kinds says which", "`enginesmith kinds` says which"),
        ("GET /v1/jobs lists them", "`enginesmith jobs list` lists them"),
        ("GET /v1/models/my.net lists its versions", "`enginesmith models my.net` lists its versions"),
        ("GET /v1/models/{name}/versions/{n} shows it", "`enginesmith models {name}@{n}` shows it"),
        ("upload it again: POST /v1/models", "upload it again: `enginesmith push`"),
        ("name a data set: POST /v1/datasets uploads one", "name a data set: `enginesmith dataset` uploads one"),
        ("or DELETE /v1/deployments/d first", "or `enginesmith delete d --deployment` first"),
        ("PUT /v1/deployments/d makes it", "`enginesmith deploy d MODEL` makes it"),
        ('deploy it all the same with "force": true', "deploy it all the same with --force"),
        ('say "precision": "int8", or convert x', "say --precision int8, or convert x"),
        ("leave it out of `layers`", "leave it out of `--layer`"),
        ("POST /v1/jobs {not json}", "`enginesmith jobs submit` {not json}"),
        ("clean it", "clean it"),
    ],
)
def test_routes_are_commands(told: str, said: str) -> None:
    assert in_commands(told) == said


def test_what_was_meant() -> None:
    assert meant(ENUM, ["prune", "net", "--method", "chanel"]) == "channel"
    assert meant(ENUM, ["prune", "net", "--method=chanel"]) == "channel"
    assert meant(ENUM, ["prune", "net", "--method", "channel"]) is None
    assert meant("there is no such field", ["chanel"]) is None


def test_an_error_is_said_once(stub: Stub, run) -> None:
    errors = [{"loc": ["method"], "msg": ENUM}, {"loc": ["steps"], "msg": "at least 1"}]
    body = {"status": 422, "code": "invalid", "detail": f"method: {ENUM} (and 1 more)", "errors": errors}
    stub.on("POST", "/v1/jobs", Answer(422, body | {"hint": "mend the fields that `errors` names; /docs shows …"}))
    code, _, err = run("prune", "net", "--method", "chanel", "--steps", "0")
    assert code == 1
    assert err.count("Input should be") == 1
    assert "  steps: at least 1" in err
    assert "hint: did you mean channel?" in err


@pytest.mark.parametrize("words", [("cancel", "j1"), ("--key", "k", "cancel", "j1")])
def test_commands_that_stand_under_jobs(stub: Stub, run, words: tuple[str, ...]) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert "there is no command 'cancel'\nhint: enginesmith jobs cancel j1" in err
    assert stub.asked == []


def test_shares_and_fields_as_people_say_them(stub: Stub, run) -> None:
    for words, told in (
        (("prune", "net", "--method", "channel", "--amount", "50"), "for 50 % say --amount 0.5"),
        (("optimize", "net", "--dataset", "d", "--max-accuracy-drop", "2"), "say --max-accuracy-drop 0.02"),
    ):
        code, _, err = run(*words)
        assert code == 2
        assert told in err
    assert stub.asked == []
    stub.on("POST", "/v1/jobs", Answer(202, {"id": "j1", "status": "queued"}))
    for given in ("epochs=2 lr=0.1", "epochs=2,lr=0.1", '{"epochs": 2, "lr": 0.1}'):
        run("prune", "net", "--method", "channel", "--finetune", given, "--layers", "a", "--no-wait")
        sent = stub.asked[-1].json
        assert (sent["finetune"], sent["layers"]) == ({"epochs": 2, "lr": 0.1}, ["a"])
