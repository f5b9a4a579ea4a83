"""Pages of other origins, and a port of its own for the management API: over real sockets."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest
from running import start_service

from app.api.pages import origins
from app.errors import Unprocessable
from app.main import create_app
from app.settings import Settings

PAGE = {"Origin": "https://shop.example"}


def test_a_port_of_its_own_and_pages_of_other_origins(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        manage_port = free.getsockname()[1]
    asked = {"ENGINESMITH_MANAGE_PORT": str(manage_port), "ENGINESMITH_CORS_ORIGINS": "https://shop.example"}
    service = start_service(tmp_path, workers=0, **asked)
    try:
        with httpx.Client(base_url=service.url) as outside, httpx.Client() as inside:
            inside.base_url = httpx.URL(f"http://127.0.0.1:{manage_port}")
            for path in ("/v1/models", "/v1/jobs", "/metrics", "/docs", "/openapi.json", "/"):
                answer = outside.get(path)
                assert (answer.status_code, answer.json()["code"]) == (404, "other_port"), path
            assert outside.post("/v1/jobs", json={}).json()["code"] == "other_port"
            assert outside.post("/predict/none", json={"inputs": [1]}).json()["code"] == "deployment_not_found"
            assert outside.get("/healthz/live").status_code == outside.get("/v2/health/live").status_code == 200
            for path in ("/v1/models", "/metrics", "/docs", "/healthz/ready"):
                assert inside.get(path).status_code == 200, path

            answer = outside.post("/predict/none", json={"inputs": [1]}, headers=PAGE)
            assert answer.headers["access-control-allow-origin"] == PAGE["Origin"]
            assert answer.headers["x-request-id"]
            wish = PAGE | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
            answer = outside.options("/predict/none", headers=wish)
            assert answer.status_code == 200
            assert "authorization" in answer.headers["access-control-allow-headers"].lower()
            answer = inside.get("/v1/models", headers={"Origin": "https://other.example"})
            assert "access-control-allow-origin" not in answer.headers
    finally:
        service.stop()


async def test_without_keys_pages_of_strangers_do_nothing(settings: Settings) -> None:
    made = create_app(settings.model_copy(update={"cors_origins": "https://shop.example"}))
    transport = httpx.ASGITransport(made)
    async with (
        made.router.lifespan_context(made),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client,
    ):
        ping = "/v1/jobs/none/cancel"
        for headers, status in (
            ({}, 404),
            ({"Origin": "http://127.0.0.1:8000"}, 404),
            (PAGE, 404),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "http://127.0.0.1:3000"}, 403),
            ({"Origin": "null"}, 403),
            ({"Host": "localhost:8000"}, 404),
            ({"Host": "enginesmith"}, 404),
            ({"Host": "[::1]:8000"}, 404),
            ({"Host": "shop.example"}, 404),
            ({"Host": "evil.example:8000"}, 403),
            ({"Host": "127.0.0.1.evil.example"}, 403),
        ):
            answer = await client.post(ping, headers=headers)
            assert answer.status_code == status, (headers, answer.text)
            predicted = await client.post("/predict/none", json={"inputs": [1]}, headers=headers)
            assert predicted.status_code == status, (headers, predicted.text)
        assert (await client.get("/v1/models", headers={"Host": "evil.example"})).json()["code"] == "foreign_host"
        assert (await client.get("/healthz/live", headers={"Host": "evil.example"})).status_code == 200


async def test_no_page_may_ask_unless_it_is_named(settings: Settings) -> None:
    made = create_app(settings)
    transport = httpx.ASGITransport(made)
    async with (
        made.router.lifespan_context(made),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        answer = await client.get("/v1/models", headers=PAGE)
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_origins_that_are_none() -> None:
    assert origins("https://a.example, http://b:8080,*") == ["https://a.example", "http://b:8080", "*"]
    for wrong in ("shop.example", "https://shop.example/", "ftp://a", "https://"):
        with pytest.raises(Unprocessable, match="no origin"):
            origins(wrong)
