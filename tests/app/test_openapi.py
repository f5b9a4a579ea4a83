"""The OpenAPI page of models and jobs against what is really taken and answered."""

from __future__ import annotations

from typing import Any

import httpx
import jsonschema
import pytest

from app.api.job_examples import EXAMPLES
from app.api.job_schema import EXAMPLE
from app.api.jobs import parse_submission
from app.domain.records import Job, Result, now
from app.domain.specs import MENU, NOT_SUBMITTED
from app.main import create_app
from app.settings import Settings
from app.storage.catalog import Catalog


@pytest.fixture
def page(settings: Settings) -> dict[str, Any]:
    return create_app(settings).openapi()


def test_every_kind_has_an_example_that_is_taken(page: dict[str, Any]) -> None:
    taken = {body["kind"] for body in EXAMPLES.values() if parse_submission(body)}
    assert taken == set(MENU) - set(NOT_SUBMITTED)
    content = page["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    assert {shown["value"]["kind"] for shown in content["examples"].values()} == taken
    for shown in content["examples"].values():
        jsonschema.validate(shown["value"], page | content["schema"])


def test_every_route_of_jobs_says_what_it_answers(page: dict[str, Any]) -> None:
    for path, methods in page["paths"].items():
        if path.startswith("/v1/jobs") and path not in ("/v1/jobs/kinds", "/v1/jobs/{id}/events"):
            for method, told in methods.items():
                good = [r for status, r in told["responses"].items() if status.startswith("2")]
                assert good, (method, path)
                for response in good:
                    assert all(media.get("schema") for media in response["content"].values()), (method, path)
    job = page["paths"]["/v1/jobs/{id}"]["get"]["responses"]["200"]["content"]["application/json"]
    assert {"parent", "warnings", "cache_hit"} <= job["schema"]["properties"].keys()
    jsonschema.validate(EXAMPLE, page | job["schema"])  # the page itself leaves nulls out


async def test_answers_fit_their_schemas(
    page: dict[str, Any], client: httpx.AsyncClient, make_version: Any, catalog: Catalog
) -> None:
    make_version()

    async def fits(method: str, path: str, template: str, status: int, **asked: Any) -> Any:
        response = await client.request(method, path, **asked)
        assert response.status_code == status, response.text
        told = page["paths"][template][method.lower()]["responses"][str(status)]["content"]["application/json"]
        jsonschema.validate(response.json(), page | told["schema"])
        return response.json()

    body = {"kind": "convert", "model": "net", "target": "openvino"}
    job = await fits("POST", "/v1/jobs", "/v1/jobs", 202, json=body)
    await fits("GET", f"/v1/jobs/{job['id']}", "/v1/jobs/{id}", 200)
    await fits("GET", "/v1/jobs", "/v1/jobs", 200)
    await fits("POST", f"/v1/jobs/{job['id']}/cancel", "/v1/jobs/{id}/cancel", 200)
    await fits("POST", f"/v1/jobs/{job['id']}/retry", "/v1/jobs/{id}/retry", 202)
    report = {
        "figures": [{"title": "t", "kind": "bars", "series": [{"name": "s", "x": ["a"], "y": [None]}]}],
        "difference": {"name": "accuracy", "difference": 0.1, "low": 0, "high": 0.2, "n": 5},
        "samples_needed": None, "notes": ["n"],
    }  # fmt: skip
    done = Job(
        id="done", kind="evaluate", spec=dict(body), model="net@1", status="succeeded", created_at=now(),
        result=Result(model="net@1", verdict="unproven", report=report), warnings=("few rows",), finished_at=now(),
    )  # fmt: skip
    catalog.add(done)
    await fits("GET", "/v1/jobs/done", "/v1/jobs/{id}", 200)
    await fits("GET", "/v1/jobs/done/report", "/v1/jobs/{id}/report", 200)
    await fits("GET", "/v1/models/net/versions/1/recipe", "/v1/models/{name}/versions/{version}/recipe", 200)


def test_says_which_scope_a_route_needs_and_where_answers_lead(page: dict[str, Any]) -> None:
    assert page["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    routes = {(m, p): told for p, methods in page["paths"].items() for m, told in methods.items()}
    assert routes["get", "/healthz/live"]["security"] == []
    assert "401" not in routes["get", "/healthz/live"]["responses"]
    assert "403" not in routes["get", "/v1/jobs"]["responses"]
    for route, scope in {
        ("post", "/v1/jobs"): "write",
        ("post", "/predict/{deployment}"): "predict",
        ("get", "/v1/webhooks"): "admin",
    }.items():
        assert routes[route]["security"] == [{"key": []}]
        assert f"`{scope}`" in routes[route]["responses"]["403"]["description"]
    ids = [told["operationId"] for told in routes.values()]
    assert len(ids) == len(set(ids))
    links = [
        (link, told)
        for told in routes.values()
        for a in told["responses"].values()
        for link in a.get("links", {}).values()
    ]
    assert len(links) > 10
    for link, _ in links:
        (target,) = [told for told in routes.values() if told["operationId"] == link["operationId"]]
        assert set(link["parameters"]) == {p["name"] for p in target["parameters"] if p["in"] == "path"}
