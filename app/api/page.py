"""What the OpenAPI page says beyond the routes: keys, the scope that each route needs, and which answer leads where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from app.api.auth import needed
from app.api.examples import PROBLEM_SCHEMA
from app.api.oip_examples import ERROR_SCHEMA

_PROBLEM = ("application/problem+json", PROBLEM_SCHEMA)
# Answers of the one, by status, lead to the others: method, path, and where in request or answer its parameters are.
_JOB = {"id": "$response.body#/id"}
_DEPLOYMENT = {"name": "$request.path.name"}
_HOOK = {"id": "$response.body#/id"}
_DATASET = {"name": "$response.body#/name"}
_LINKS: dict[tuple[str, str, str], list[tuple[str, str, dict[str, str]]]] = {
    ("post", "/v1/models", "202"): [
        ("get", "/v1/jobs/{id}", _JOB),
        ("post", "/v1/jobs/{id}/cancel", _JOB),
        ("get", "/v1/models/{name}", {"name": "$response.body#/spec/name"}),
    ],
    ("post", "/v1/jobs", "202"): [
        ("get", "/v1/jobs/{id}", _JOB),
        ("get", "/v1/jobs/{id}/events", _JOB),
        ("get", "/v1/jobs/{id}/report", _JOB),
        ("post", "/v1/jobs/{id}/cancel", _JOB),
        ("post", "/v1/jobs/{id}/retry", _JOB),
    ],
    ("post", "/v1/datasets", "201"): [
        ("get", "/v1/datasets/{name}", _DATASET),
        ("delete", "/v1/datasets/{name}", _DATASET),
    ],
    ("put", "/v1/deployments/{name}", "201"): [
        ("get", "/v1/deployments/{name}", _DEPLOYMENT),
        ("post", "/predict/{deployment}", {"deployment": "$request.path.name"}),
        ("get", "/v2/models/{name}", _DEPLOYMENT),
        ("post", "/v1/deployments/{name}/rollback", _DEPLOYMENT),
        ("delete", "/v1/deployments/{name}", _DEPLOYMENT),
    ],
    ("post", "/v1/webhooks", "201"): [
        ("get", "/v1/webhooks/{id}", _HOOK),
        ("post", "/v1/webhooks/{id}/ping", _HOOK),
        ("delete", "/v1/webhooks/{id}", _HOOK),
    ],
}


def completed(page: dict[str, Any]) -> dict[str, Any]:
    """The page with security and links."""
    page.setdefault("components", {})["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "where the service has keys; without, loopback alone",
        }
    }
    for method, path, route in _routes(page):
        if route.get("parameters"):
            _answer(route, path, 422, "a parameter that cannot be one")
        wanted = needed(method.upper(), path)
        route["security"] = [] if wanted is None else [{"key": []}]
        if wanted is not None:
            told = {401: "no key, or an unknown one", 429: "more than this key may; Retry-After says for how long"}
            if wanted != "any":
                told[403] = f"the key has not the scope `{wanted}`"
            for status, why in told.items():
                _answer(route, path, status, why)
    for (method, path, answered), targets in _LINKS.items():
        answer = page["paths"][path][method]["responses"][answered]
        answer["links"] = {
            f"{target} {there}": {"operationId": page["paths"][there][target]["operationId"], "parameters": values}
            for target, there, values in targets
        }
    return page


def _answer(route: dict[str, Any], path: str, status: int, why: str) -> None:
    """One more that the route may give; its own words stand, if it has any."""
    kind, schema = ("application/json", ERROR_SCHEMA) if path.startswith("/v2") else _PROBLEM
    route["responses"].setdefault(str(status), {"description": why, "content": {kind: {"schema": schema}}})


def _routes(page: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, routes in page["paths"].items():
        for method, route in routes.items():
            yield method, path, route
