import json

import httpx
import pytest
from asking import problem
from fastapi import FastAPI

from app.errors import Overloaded


async def test_unknown_routes_and_methods(client: httpx.AsyncClient) -> None:
    problem(await client.get("/nope"), 404, "not_found")
    problem(await client.get("/v1/models/"), 404)
    body = problem(answer := await client.put("/v1/models", json={}), 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"
    assert "GET" in body["hint"]
    answer = await client.post("/v1/models/x/versions/1")
    assert (problem(answer, 405), answer.headers["allow"])[1] == "DELETE, GET"


async def test_errors_under_v2_are_what_its_clients_read(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v2/nope")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    assert isinstance(answer.json()["error"], str)


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"[" * 10_000 + b"]" * 10_000, 400, "too_deep"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400, "too_deep"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, 400, "too_deep"),
        (b'{"kind": "train", "lr": NaN}', 400, "bad_json"),
        (b'{"kind": "train", "lr": 1e999}', 400, "bad_json"),
        (b'{"kind": "train", "kind": "prune"}', 400, "bad_json"),
        (b'{"kind": "\xff"}', 400, "bad_json"),
        (b'{"kind": "\\ud800"}', 400, "bad_json"),
        (b"", 400, "bad_json"),
        (b"{", 400, "bad_json"),
        (b"[]", 422, "invalid"),
        (b"null", 422, "invalid"),
        (b'"train"', 422, "invalid"),
        (b"{}", 422, "unknown_kind"),
        (b'{"kind": 3}', 422, "unknown_kind"),
        (b'{"kind": ["train"]}', 422, "unknown_kind"),
        (b'{"kind": "import", "name": "x"}', 422, "unknown_kind"),
        (b'{"kind": "train", "model": "m", "epochs": 1000000000000000000000000000000}', 422, "invalid"),
    ],
)
async def test_bad_json(client: httpx.AsyncClient, content: bytes, status: int, code: str) -> None:
    answer = await client.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"})
    problem(answer, status, code)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", None])
async def test_wrong_content_type(client: httpx.AsyncClient, kind: str | None) -> None:
    answer = await client.post("/v1/jobs", content=b"{}", headers={"Content-Type": kind} if kind else {})
    problem(answer, 415, "unsupported_media")


async def test_json_types_with_a_charset_or_suffix_are_taken(client: httpx.AsyncClient) -> None:
    for kind in ("application/json; charset=utf-8", "application/merge-patch+json", "APPLICATION/JSON"):
        problem(await client.post("/v1/jobs", content=b"{}", headers={"Content-Type": kind}), 422)


async def test_fields_that_are_wrong_are_named(client: httpx.AsyncClient) -> None:
    body = problem(
        await client.post("/v1/jobs", json={"kind": "train", "model": "a b", "epochs": 0, "colour": "red"}),
        422,
        "invalid",
    )
    assert [e["loc"] for e in body["errors"]] == [["model"], ["epochs"], ["colour"]]
    assert "pydantic" not in json.dumps(body)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "limit=100000", "status=happy", "kind=fly", "cursor=%00", "cursor=AA"]
)
async def test_bad_queries(client: httpx.AsyncClient, query: str) -> None:
    problem(await client.get(f"/v1/jobs?{query}"), 422)


async def test_a_body_over_the_limit_is_not_read(client: httpx.AsyncClient) -> None:
    problem(await client.post("/v1/jobs", content=b" " * (4 * 1024 * 1024 + 1)), 413, "too_large")


async def test_a_chunked_body_over_the_limit(client: httpx.AsyncClient) -> None:
    async def chunks():  # type: ignore[no-untyped-def]
        for _ in range(6):
            yield b" " * 1024 * 1024

    answer = await client.post("/v1/jobs", content=chunks(), headers={"Content-Type": "application/json"})
    problem(answer, 413, "too_large")


async def test_an_error_that_nobody_foresaw_tells_nothing(app: FastAPI, client: httpx.AsyncClient) -> None:
    @app.get("/boom")
    async def boom() -> None:
        raise KeyError("secret")

    @app.get("/full")
    async def full() -> None:
        raise OSError(28, "No space left on device")

    @app.get("/busy")
    async def busy() -> None:
        raise Overloaded("too many", headers={"Retry-After": "3"})

    answer = await client.get("/boom")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in problem(answer, 500, "internal")["hint"]
    problem(await client.get("/full"), 507, "insufficient_storage")
    busy_answer = await client.get("/busy")
    assert (problem(busy_answer, 429)["retryable"], busy_answer.headers["retry-after"]) == (True, "3")


async def test_a_field_that_is_there_twice_is_found_at_once(client: httpx.AsyncClient) -> None:
    fields = ", ".join(f'"f{n}": 1' for n in range(200_000))  # comparing each with each would take hours
    body = f'{{{fields}, "f199999": 2}}'
    answer = await client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert "'f199999' twice" in problem(answer, 400)["detail"]
    index = await client.post("/v2/repository/index", content=b" " * (5 << 20))
    assert index.status_code == 413


async def test_redis_gone(app: FastAPI, client: httpx.AsyncClient) -> None:
    from app.storage.catalog import Catalog

    app.state.catalog = Catalog.open(app.state.settings, "redis://127.0.0.1:1", patience_s=0.1)
    answer = await client.get("/v1/models")
    assert problem(answer, 503, "redis_unavailable")["retryable"] is True
    assert answer.headers["retry-after"]
