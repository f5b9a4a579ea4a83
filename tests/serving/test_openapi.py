"""The OpenAPI page against what is really answered: deployments and the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from app.main import create_app
from app.settings import Settings

Publish = Callable[..., object]
Page = dict[str, Any]


@pytest.fixture
def page(settings: Settings) -> Page:
    return create_app(settings).openapi()


def operations(page: Page, prefix: str) -> Iterator[tuple[str, Page]]:
    for path, methods in page["paths"].items():
        if path.startswith(prefix):
            yield from ((f"{method} {path}", operation["responses"]) for method, operation in methods.items())


def test_errors_are_of_the_kind_that_their_path_has(page: Page) -> None:
    for prefix, kind in (("/v2", "application/json"), ("/v1", "application/problem+json")):
        for told, responses in operations(page, prefix):
            errors = [r for status, r in responses.items() if status == "default" or status >= "400"]
            assert errors, told
            for response in errors:
                assert list(response["content"]) == [kind], told
                assert response["content"][kind]["schema"], told


@pytest.mark.parametrize("prefix", ["/v2", "/v1/deployments"])
def test_every_answer_has_a_schema(page: Page, prefix: str) -> None:
    for told, responses in operations(page, prefix):
        good = [content for status, r in responses.items() if status[0] == "2" for content in [r.get("content", {})]]
        assert good, told
        assert all(media.get("schema") for content in good for media in content.values()), told


def test_what_a_put_can_be_refused_for(page: Page) -> None:
    assert {"400", "404", "409", "415", "422"} <= page["paths"]["/v1/deployments/{name}"]["put"]["responses"].keys()


async def test_answers_fit_their_schemas(page: Page, client: httpx.AsyncClient, publish: Publish) -> None:
    publish(factor=1.0)
    publish(factor=2.0)

    async def fits(method: str, path: str, status: int, template: str = "", **asked: Any) -> Any:
        response = await client.request(method, path, headers={"Prefer": "wait=60"}, **asked)
        assert response.status_code == status, response.text
        told = page["paths"][template or path][method.lower()]["responses"][str(status)]["content"]
        schema = told[response.headers["content-type"]]["schema"]
        jsonschema.validate(response.json(), page | schema)  # with the page, for what it refers to in it
        return response.json()

    one = "/v1/deployments/{name}"
    await fits("PUT", "/v1/deployments/web", 201, one, json={"model": "net@1"})
    parts = {"canary": {"model": "net@2", "percent": 50, "max_p99_ms": 9000}, "shadow": {"model": "net@2"}}
    await fits("PUT", "/v1/deployments/web", 200, one, json={"model": "net@1"} | parts)
    await fits("PUT", "/v1/deployments/web", 404, one, json={"model": "nothing@1"})
    await fits("PUT", "/v1/deployments/web", 422, one, json={"model": 1})
    await fits("PUT", "/v1/deployments/web", 200, one, json={"model": "net@2"})
    await fits("POST", "/v1/deployments/web/rollback", 200, f"{one}/rollback")
    await fits("GET", "/v1/deployments/web", 200, one)
    assert len((await fits("GET", "/v1/deployments", 200))["items"]) == 1

    for path in ("", "/config", "/stats", "/ready"):
        await fits("GET", f"/v2/models/web{path}", 200, "/v2/models/{name}" + path)
        await fits("GET", f"/v2/models/none{path}", 404, "/v2/models/{name}" + path)
    for path in ("/v2", "/v2/models/stats", "/v2/health/live", "/v2/health/ready"):
        await fits("GET", path, 200)
    await fits("POST", "/v2/repository/index", 200)
    row = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    infer = "/v2/models/{name}/infer"
    await fits("POST", "/v2/models/web/infer", 200, infer, json={"inputs": [row]})
    await fits("POST", "/v2/models/web/infer", 400, infer, json={"inputs": []})
