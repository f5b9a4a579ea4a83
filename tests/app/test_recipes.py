"""How a version was made: the chain of specs back to the upload."""

from __future__ import annotations

from typing import Any

import httpx

from app.domain.records import Job, Made, Metrics, Quality, now
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.registry import remove_version

ARCHITECTURE = {"architecture.json": "c" * 64, "model.safetensors": "d" * 64}


def made(id: str, **spec: Any) -> dict[str, Any]:
    return Made(job=id, spec=spec).model_dump()


async def recipe(client: httpx.AsyncClient, n: int) -> dict[str, Any]:
    answer = await client.get(f"/v1/models/net/versions/{n}/recipe")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_back_to_the_upload(client: httpx.AsyncClient, make_version: Any, catalog: Catalog) -> None:
    make_version(files=ARCHITECTURE)
    job = Job(
        id="t", kind="train", spec={"kind": "train"}, model="net@1", dataset="digits@3", created_at=now()
    )  # the record knows which data set it was
    catalog.add(job)
    train = {"kind": "train", "model": "net@1", "dataset": "digits", "epochs": 3, "teacher": None}
    make_version(parent="net@1", made_by=made("t", **train), files=ARCHITECTURE)
    quality = Quality(name="accuracy", value=0.9, low=0.8, high=1, n=9, split="test", dataset="digits@4")
    prune = {"kind": "prune", "model": "net", "dataset": "digits", "method": "channel", "finetune": {"epochs": 2}}
    metrics = Metrics(quality=quality).model_dump()  # the job's record is gone: the figures know it
    make_version(parent="net@2", made_by=made("gone", **prune), metrics=metrics)
    make_version(parent="net@3", made_by=made("c", kind="convert", model="net", target="openvino"), format="openvino")
    found = await recipe(client, 4)
    assert found == {
        "model": "net@4",
        "root": "net@1",
        "architecture": "c" * 64,
        "chain": [
            {"kind": "train", "dataset": "digits@3", "epochs": 3},
            {"kind": "prune", "dataset": "digits@4", "method": "channel", "finetune": {"epochs": 2}},
            {"kind": "convert", "target": "openvino"},
        ],
        "made": ["net@2", "net@3", "net@4"],
        "complete": True,
        "missing": None,
    }
    assert (await recipe(client, 1))["chain"] == []
    version = (await client.get("/v1/models/net/versions/4")).json()
    assert version["links"]["recipe"] == "/v1/models/net/versions/4/recipe"
    assert (await client.get("/v1/models/net/versions/2")).json()["architecture"] == "c" * 64


async def test_winners_bring_their_own_chain(client: httpx.AsyncClient, make_version: Any) -> None:
    make_version(format="onnx", details={"architecture": "e" * 64}, trainable=False)
    steps = [
        {"kind": "prune", "model": "x@1", "amount": 0.5, "dataset": "d@1"},
        {"kind": "convert", "precision": "int8"},
    ]
    make_version(parent="net@1", made_by=made("o", kind="optimize", model="net@1"), details={"recipe": steps})
    found = await recipe(client, 2)
    assert found["chain"] == [
        {"kind": "prune", "amount": 0.5, "dataset": "d@1"},
        {"kind": "convert", "precision": "int8"},
    ]
    assert found["made"] == [None, "net@2"]
    assert (found["root"], found["architecture"]) == ("net@1", "e" * 64)


async def test_an_ancestor_that_was_deleted(
    client: httpx.AsyncClient, make_version: Any, artifacts: Artifacts, catalog: Catalog
) -> None:
    make_version()
    make_version(parent="net@1", made_by=made("t", kind="train", model="net@1"))
    make_version(parent="net@2", made_by=made("p", kind="prune", model="net@2"))
    remove_version(artifacts, catalog, "net", 2)
    found = await recipe(client, 3)
    assert (found["complete"], found["missing"], found["root"]) == (False, "net@2", "net@2")
    assert [spec["kind"] for spec in found["chain"]] == ["prune"]


async def test_a_winner_without_an_upload(client: httpx.AsyncClient, make_version: Any) -> None:
    make_version(made_by=made("s", kind="search", estimator="random_forest", model=None), format="onnx")
    found = await recipe(client, 1)
    assert (found["root"], found["model"], found["architecture"]) == ("net@1", "net@1", None)


async def test_no_such_version(client: httpx.AsyncClient, make_version: Any) -> None:
    make_version()
    for path, status in (("net/versions/9", 404), ("nobody/versions/1", 404), ("net/versions/x", 422)):
        answer = await client.get(f"/v1/models/{path}/recipe")
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
