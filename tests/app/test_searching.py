"""Searches as they are submitted: what they become, and what is refused with the name of what is wrong."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from asking import problem, push_dataset
from fastapi import FastAPI

from app.domain.records import Job, now
from app.storage.catalog import Catalog

CHAIN: list[dict[str, Any]] = [{"kind": "train", "epochs": 2}, {"kind": "prune", "method": "channel"}]
SEARCH: dict[str, Any] = {
    "kind": "search", "model": "net", "dataset": "set", "chain": CHAIN, "space": {"train.lr": [0.01, 0.1]},
}  # fmt: skip
FOREST: dict[str, Any] = {
    "kind": "search", "dataset": "set", "estimator": "random_forest", "sampler": "grid", "cv": 3,
    "space": {"n_estimators": [10, 20], "max_depth": [5, None]},
}  # fmt: skip


@pytest.fixture
async def ready(client: httpx.AsyncClient, make_version: Any) -> httpx.AsyncClient:
    make_version()
    make_version(format="onnx", trainable=False)
    await push_dataset(client)
    return client


async def submit(client: httpx.AsyncClient, fields: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post("/v1/jobs", json=fields)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_search_starts_from_a_version_that_its_first_link_can_use(ready: httpx.AsyncClient) -> None:
    job = await submit(ready, SEARCH)
    assert (job["model"], job["dataset"], job["queue"]) == ("net@1", "set@1", "cpu")
    assert job["links"]["trials"] == f"/v1/jobs?parent={job['id']}"
    last = await submit(
        ready,
        SEARCH
        | {"chain": [{"kind": "quantize", "target": "openvino"}], "space": {"quantize.calibration_samples": [8, 16]}},
    )
    assert last["model"] == "net@2"  # quantize takes what can be converted


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ({"choices": [0.01, 0.1]}, [0.01, 0.1]),
        ({"values": [0.01, 0.1]}, [0.01, 0.1]),
        ({"type": "categorical", "choices": [0.1]}, [0.1]),
        ({"min": 0.01, "max": 0.1, "log": True}, {"low": 0.01, "high": 0.1, "log": True, "step": None, "type": None}),
    ],
)
async def test_a_dimension_as_others_write_it(ready: httpx.AsyncClient, given: Any, stored: Any) -> None:
    job = await submit(ready, SEARCH | {"space": {"train.lr": given}})
    assert job["spec"]["space"]["train.lr"] == stored


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"choices": []}, "at least 1"),
        ({"min": 0.2, "max": 0.1}, "contradictory"),
        ({"min": 0.1, "high": 0.2}, "min"),
        ({"choices": [0.1], "low": 1}, "choices"),
        ({"type": "int", "values": [1]}, "values"),
        ({}, "low"),
    ],
)
async def test_a_dimension_that_is_neither(ready: httpx.AsyncClient, given: Any, word: str) -> None:
    body = problem(await ready.post("/v1/jobs", json=SEARCH | {"space": {"train.lr": given}}), 422, "invalid")
    assert word in str(body["errors"])


async def test_a_chain_may_be_named_by_its_space(ready: httpx.AsyncClient) -> None:
    fields = {name: SEARCH[name] for name in ("kind", "model", "dataset")}
    space = {"prune.method": ["channel"], "train.lr": [0.1], "prune.amount": {"low": 0.1, "high": 0.5}}
    job = await submit(ready, fields | {"space": space, "sampler": "bayesian", "objective": "quality"})
    assert job["spec"]["chain"] == [{"kind": "prune"}, {"kind": "train"}]  # as they first appear
    assert (job["spec"]["sampler"], job["spec"]["objectives"]) == ("tpe", ["quality"])
    numbered = {"1.train.lr": [0.1], "0.train.epochs": [1, 2]}
    job = await submit(ready, fields | {"space": numbered})
    assert job["spec"]["chain"] == [{"kind": "train"}, {"kind": "train"}]


async def test_an_estimator_needs_no_model(ready: httpx.AsyncClient) -> None:
    job = await submit(ready, FOREST)
    assert (job["model"], job["dataset"]) == (None, "set@1")
    named = await submit(ready, FOREST | {"model": "forest"})
    assert (named["model"], named["spec"]["model"]) == (None, "forest")


LR = {"low": 0.1, "high": 0.01}
QUANTIZE = {"kind": "quantize", "target": "openvino"}
FIELDS = ("epochs", "batch_size", "lr", "momentum", "weight_decay", "seed", "temperature", "alpha", "amp", "loss",
          "early_stopping")  # fmt: skip
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"space": {}}, "invalid", "space"),
    ({"space": {"train.lr": []}}, "invalid", "train.lr"),
    ({"space": {"train.lr": LR}}, "invalid", "contradictory"),
    ({"trials": 0}, "invalid", "trials"),
    ({"parallel": 0}, "invalid", "parallel"),
    ({"sampler": "psychic"}, "invalid", "sampler"),
    ({"estimator": "random_forest"}, "invalid", "either"),
    ({"chain": None, "space": {"lr": [0.1]}}, "invalid", "either"),
    ({"chain": None, "space": {"train.lr": [0.1], "1.prune.amount": [0.5]}}, "invalid", "either"),
    ({"chain": None, "space": {"0.train.lr": [0.1], "2.prune.amount": [0.5]}}, "invalid", "either"),
    ({"chain": None, "space": {"evaluate.samples": [5]}}, "invalid", "either"),
    ({"chain": None, "space": {"prune.amount": [0.5]}}, "bad_chain", "method"),
    ({"chain": []}, "invalid", "chain"),
    ({"space": {"lr": [0.1]}}, "bad_space", "lr"),
    ({"space": {"train.learning_rate": [0.1]}}, "bad_space", "learning_rate"),
    ({"space": {"train.model": ["net@1"]}}, "bad_space", "model"),
    ({"space": {"share.groups": [2]}}, "bad_space", "share"),
    ({"space": {"7.train.lr": [0.1]}}, "bad_space", "7"),
    ({"space": {"1.train.lr": [0.1]}}, "bad_space", "prune"),
    ({"space": {"train.lr.more": [0.1]}}, "bad_space", "train.lr"),
    ({"space": {"prune.finetune.lrr": [0.1]}}, "bad_space", "lrr"),
    ({"chain": [*CHAIN, {"kind": "train"}]}, "bad_space", "0.train.lr"),
    ({"space": {"train.lr": [0.1, -1]}}, "bad_space", "-1"),
    ({"space": {"train.lr": {"low": -1, "high": 1}}}, "bad_space", "train.lr"),
    ({"space": {"train.epochs": {"low": 1, "high": 2.5}}}, "bad_space", "train.epochs"),
    ({"space": {"train.optimizer": ["sgd", "adm"]}}, "bad_space", "adm"),
    ({"space": {"prune.amount": {"low": 0.5, "high": 1}}}, "bad_space", "prune.amount"),
    ({"sampler": "grid", "space": {"train.lr": {"low": 0.01, "high": 0.1}}}, "bad_space", "train.lr"),
    ({"sampler": "grid", "space": {"train.seed": {"low": 0, "high": 10**7}}}, "grid_too_large", "10000001"),
    ({"sampler": "grid", "space": {"train.seed": {"low": 0, "high": 999}, "prune.seed": {"low": 0, "high": 999}}},
     "grid_too_large", "1000000"),
    ({"chain": [{"kind": "search"}], "space": {"search.trials": [1]}}, "bad_chain", "search"),
    ({"chain": [{"epochs": 2}]}, "bad_chain", "None"),
    ({"chain": [{"kind": "train", "epoch": 2}]}, "bad_chain", "epoch"),
    ({"chain": [{"kind": "train", "model": "net@1"}]}, "bad_chain", "model"),
    ({"chain": [{"kind": "train"}, {"kind": "prune", "method": "channel", "dry_run": True}]}, "bad_chain", "dry run"),
    ({"chain": [{"kind": "convert", "target": "openvino"}, {"kind": "train"}]}, "bad_chain", "link 0"),
    ({"chain": [{"kind": "quantize", "target": "openvino"}, {"kind": "train"}]}, "bad_chain", "link 1"),
    ({"chain": [{"kind": "train"}, {"kind": "convert", "target": "openvino", "precision": "int8"}]},
     "not_quantized", "int8"),
    ({"chain": [{"kind": "train"}, {"kind": "prune"}]}, "bad_chain", "method"),
    ({"objectives": []}, "invalid", "objectives"),
    ({"objectives": ["beauty"]}, "unknown_objective", "beauty"),
    ({"objectives": ["latency", "latency_ms"]}, "unknown_objective", "twice"),
    ({"objectives": [{"metric": "loss", "direction": "sideways"}]}, "invalid", "direction"),
    ({"pruner": "asha", "objectives": ["quality", "size"]}, "bad_pruner", "asha"),
    ({"pruner": "median", "objectives": ["latency"]}, "bad_pruner", "latency_ms"),
    ({"pruner": "halving"}, "bad_pruner", "halving"),
    ({"dataset": None}, "dataset_missing", "data set"),
    ({"space": {"9" * 5000 + ".train.lr": [0.1]}}, "bad_space", "no link 999"),
    ({"space": {"train.lr": [0.1], "0.train.lr": [0.2]}}, "bad_space", "the same field"),
    ({"space": {"prune.finetune": [{"epochs": 1}], "prune.finetune.lr": [0.1]}}, "bad_space", "the same field"),
    ({"space": {"train.lr": {"low": 1e-300, "high": 100, "step": 1e-300}}}, "invalid", "steps"),
    ({"space": {"train.lr": {"low": -1e308, "high": 1e308}}}, "invalid", "steps"),
    ({"space": {"train.lr": {"low": 0.7, "high": 2, "type": "int"}}}, "invalid", "whole bounds"),
    ({"space": {f"train.{f}": [1] * 10_000 for f in FIELDS}}, "bad_space", "110000 choices"),
    ({"chain": [QUANTIZE, QUANTIZE], "space": {"0.quantize.seed": [1]}}, "bad_chain", "quantized"),
    ({"chain": [QUANTIZE, {"kind": "convert", "target": "openvino"}], "space": {"quantize.seed": [1]}}, "bad_chain",
     "fp32"),
    ({"objectives": ["quality", "r2"]}, "unknown_objective", "judged by accuracy"),
    ({"objectives": ["loss"], "chain": [CHAIN[1]], "space": {"prune.amount": [0.5]}}, "unknown_objective", "trains"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "code", "word"), BAD, ids=lambda v: str(v)[:60])
async def test_what_cannot_be_searched(
    ready: httpx.AsyncClient, changes: Any, code: str, word: str, app: FastAPI
) -> None:
    body = problem(await ready.post("/v1/jobs", json=SEARCH | changes), 422, code)
    assert word in str(body)
    assert body["errors"]
    assert app.state.queue.waiting() == set()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"estimator": "forrest"}, "unknown_estimator"),
        ({"objectives": ["latency"]}, "unknown_objective"),
        ({"pruner": "asha"}, "bad_pruner"),
        ({"pruner": "halving", "sampler": "tpe"}, "bad_pruner"),
        ({"objectives": ["r2"]}, "unknown_objective"),
        ({"cv": 49}, "too_few_rows"),
        ({"cv": 1}, "invalid"),
        ({"model": "forest@3"}, "bad_model"),
        ({"space": {"n_estimators": {"low": 0.5, "high": 2}}}, "bad_space"),
        ({"estimator": "linear_regression"}, "wrong_task"),
    ],
)
async def test_what_no_estimator_can_be_searched_for(ready: httpx.AsyncClient, changes: Any, code: str) -> None:
    problem(await ready.post("/v1/jobs", json=FOREST | changes), 422, code)


async def test_a_chain_that_needs_weights_needs_a_version_that_has_them(ready: httpx.AsyncClient) -> None:
    problem(await ready.post("/v1/jobs", json=SEARCH | {"model": "net@2"}), 409, "not_trainable")


async def test_a_value_that_completes_a_link_is_enough(ready: httpx.AsyncClient) -> None:
    chain = [{"kind": "prune"}]
    await submit(ready, SEARCH | {"chain": chain, "space": {"prune.method": ["channel", "l1_unstructured"]}})


async def test_warnings(ready: httpx.AsyncClient) -> None:
    grid = SEARCH | {"sampler": "grid"}
    assert "2 points" in (await submit(ready, grid | {"trials": 10}))["warnings"][0]
    space = {"train.lr": [0.1, 0.1, 0.2]}
    assert "twice" in str((await submit(ready, grid | {"space": space}))["warnings"])
    still = {"chain": CHAIN[1:], "space": {"prune.amount": [0.1, 0.2]}, "pruner": "median"}
    assert "trains" in str((await submit(ready, SEARCH | still))["warnings"])


async def test_trials_are_jobs_that_only_their_parent_lists(ready: httpx.AsyncClient, catalog: Catalog) -> None:
    id = (await submit(ready, SEARCH))["id"]
    catalog.moved(id, was={"queued"}, to="running", attempt=1, lease_s=600)
    for n in range(3):
        spec = {"kind": "trial", "role": "chain", "number": n}
        trial = Job(id=f"{id}-{n:04d}", kind="trial", spec=spec, parent=id, model="net@1", created_at=now())
        assert catalog.trials.add(trial, 1)
    assert [job["id"] for job in (await ready.get("/v1/jobs")).json()["items"]] == [id]
    listed = (await ready.get(f"/v1/jobs?parent={id}&limit=2")).json()
    assert len(listed["items"]) == 2
    assert listed["items"][0]["links"]["parent"] == f"/v1/jobs/{id}"
    rest = (await ready.get(f"/v1/jobs?parent={id}&limit=2&cursor={listed['next_cursor']}")).json()["items"]
    assert len({job["id"] for job in listed["items"] + rest}) == 3
    assert len((await ready.get("/v1/jobs?kind=trial")).json()["items"]) == 3
    problem(await ready.post("/v1/jobs", json={"kind": "trial", "role": "chain"}), 422, "unknown_kind")
    # A trial alone is cancelled; its search goes on, and a trial is not retried but with it.
    assert (await ready.post(f"/v1/jobs/{id}-0000/cancel")).status_code == 200
    problem(await ready.post(f"/v1/jobs/{id}-0000/retry"), 409, "is_a_trial")
    assert (await ready.get(f"/v1/jobs/{id}")).json()["status"] == "running"
    # The search takes the others along.
    assert catalog.trials.park(catalog.job(id), 2) == "due"  # for the one that was cancelled
    answer = await ready.post(f"/v1/jobs/{id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert {job.status for job in catalog.trials.of(id).values()} == {"cancelled"}
    assert catalog.open_jobs() == []
