"""prune and share at submission: what will run, but not as one might hope."""

from typing import Any

import httpx
import pytest
from asking import problem, push_dataset

from app.storage.catalog import Catalog

PRUNE = {"kind": "prune", "model": "net@1", "method": "channel"}


@pytest.fixture
async def ready(client: httpx.AsyncClient, make_version: Any) -> httpx.AsyncClient:
    make_version()
    await push_dataset(client)
    return client


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "without a data set nothing measures"),
        ({"dataset": "set", "steps": 5, "finetune": {"epochs": 3}}, "5 steps share 3 epochs of fine-tuning: 2 of them"),
        ({"dataset": "set", "steps": 5, "schedule": "one_shot", "finetune": {"epochs": 9}}, "one_shot"),
        ({"dataset": "set", "steps": 3}, "without `finetune` between them"),
        ({"dry_run": True, "sensitivity": True}, "without a data set there is none"),
        ({"dry_run": True, "importance": "taylor"}, "magnitude in the place of taylor"),
        ({"dry_run": True, "finetune": {"epochs": 3}}, "how long the fine-tuning would take"),
        ({"dataset": "set", "sensitivity": True}, "validation rows: a step of"),
        ({"dataset": "set", "method": "n_m", "n": 1}, "no hardware known gains speed from 1:4"),
        ({"method": "n_m", "amount": 0.3}, "`amount` 0.3 plays no part"),
        ({"round_to": 8, "method": "l1_unstructured"}, "`round_to` 8 plays no part: it is of channel, not of l1"),
        ({"dataset": "set", "schedule": "gradual"}, "gradual plays no part in one step"),
        ({"kind": "share", "method": "cluster", "groups": 4}, "`groups` 4 plays no part: it is of grouped_conv"),
        ({"kind": "share", "method": "low_rank", "ranks": "vbmf", "energy": 0.5}, "`energy` 0.5 plays no part"),
    ],
)
async def test_warned_of(fields: Any, told: str, ready: httpx.AsyncClient, catalog: Catalog) -> None:
    answer = await ready.post("/v1/jobs", json=PRUNE | fields)
    assert answer.status_code == 202, answer.text
    assert told in "; ".join(catalog.job(answer.json()["id"]).warnings)


async def test_nothing_to_warn_of(ready: httpx.AsyncClient, catalog: Catalog) -> None:
    for fields in (
        {"dataset": "set", "steps": 3, "finetune": {"epochs": 3}, "importance": "taylor"},
        {"dry_run": True},
        {"dataset": "set", "method": "n_m"},
        # As a recipe says it: every field, those of other methods too.
        {"dataset": "set", "amount": 0.3, "norm": 2.0, "n": 2, "m": 4, "schedule": "iterative"},
    ):
        answer = await ready.post("/v1/jobs", json=PRUNE | fields)
        assert catalog.job(answer.json()["id"]).warnings == ()


async def test_layers_of_a_share_are_known_ones(ready: httpx.AsyncClient) -> None:
    asked = {"kind": "share", "model": "net@1", "method": "low_rank", "layers": ["fc", "fc9"]}
    assert "conv1, fc" in problem(await ready.post("/v1/jobs", json=asked), 422, "unknown_layer")["hint"]
