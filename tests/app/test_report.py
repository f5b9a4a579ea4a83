"""The report of a job as JSON: beside what it has found, the versions from the upload on, and the recipe."""

from __future__ import annotations

from typing import Any

import httpx

from app.domain.records import Job, Made, Metrics, Quality, Result, now
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.registry import remove_version


def quality(value: float, dataset: str = "digits@1") -> dict[str, Any]:
    found = Quality(name="accuracy", value=value, low=0.8, high=1, n=9, split="test", dataset=dataset)
    return Metrics(quality=found).model_dump()


def chain(make_version: Any) -> None:
    """Imported, trained, pruned, converted."""
    make_version()
    for kind, more in (
        ("train", {"metrics": quality(0.9), "parameters": 100}),
        ("prune", {"metrics": quality(0.88), "parameters": 50}),
        ("convert", {"metrics": quality(0.5, "other@1"), "parameters": 50, "format": "openvino",
                     "details": {"precision": "int8"}}),
    ):  # fmt: skip
        number = {"train": 1, "prune": 2, "convert": 3}[kind]
        made = Made(job=f"of-{kind}", spec={"kind": kind, "model": f"net@{number}"}).model_dump()
        make_version(parent=f"net@{number}", made_by=made, **more)


async def report(client: httpx.AsyncClient, catalog: Catalog, kind: str, **fields: Any) -> dict[str, Any]:
    id = f"of-{kind}"
    job = {"id": id, "kind": kind, "spec": {"kind": kind}, "status": "succeeded", "created_at": now()} | fields
    catalog.add(Job.model_validate(job))
    answer = await client.get(f"/v1/jobs/{id}/report")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_it_has_the_lineage_and_the_recipe_of_what_was_made(
    client: httpx.AsyncClient, make_version: Any, catalog: Catalog
) -> None:
    chain(make_version)
    found = await report(client, catalog, "convert", model="net@3", result=Result(model="net@4"))
    assert [step["ref"] for step in found["lineage"]] == ["net@1", "net@2", "net@3", "net@4"]
    assert [step["made_by"]["kind"] for step in found["lineage"]][1:] == ["train", "prune", "convert"]
    assert found["lineage"][0]["changes"] == {}
    assert found["lineage"][2]["changes"] == {
        "parameters": {"before": 100, "after": 50},
        "accuracy": {"before": 0.9, "after": 0.88},
    }
    changes = found["lineage"][3]["changes"]
    assert changes["format"] == {"before": "torch", "after": "openvino"}
    assert changes["precision"] == {"before": None, "after": "int8"}
    assert "accuracy" not in changes  # measured on other rows
    assert [spec["kind"] for spec in found["recipe"]["chain"]] == ["train", "prune", "convert"]
    assert (await client.get("/v1/models/net/versions/4/recipe")).json() == found["recipe"]


async def test_of_what_was_only_looked_at_there_is_no_recipe(
    client: httpx.AsyncClient, make_version: Any, catalog: Catalog
) -> None:
    chain(make_version)
    found = await report(client, catalog, "evaluate", model="net@2", result=Result(model="net@2"))
    assert [step["ref"] for step in found["lineage"]] == ["net@1", "net@2"]
    assert found["recipe"] is None


async def test_it_begins_where_versions_are_left(
    client: httpx.AsyncClient, make_version: Any, catalog: Catalog, artifacts: Artifacts
) -> None:
    chain(make_version)
    remove_version(artifacts, catalog, "net", 2)
    found = await report(client, catalog, "convert", model="net@3", result=Result(model="net@4"))
    assert [step["ref"] for step in found["lineage"]] == ["net@3", "net@4"]
    assert not found["recipe"]["complete"]
    found = await report(client, catalog, "train", model="net@9", result=Result(model="gone@1"))
    assert (found["lineage"], found["recipe"]) == ([], None)
    page = await client.get("/v1/jobs/of-train/report", headers={"Accept": "text/html"})
    assert page.status_code == 200
