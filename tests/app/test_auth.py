import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from asking import problem

from app.api.key_text import parse_keys
from app.errors import Conflict, Unprocessable
from app.main import create_app
from app.settings import Settings


@pytest.fixture
async def guarded(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    made = create_app(settings.model_copy(update={"api_keys": "ALL, P=predict,W=write, A=admin", "host": "0.0.0.0"}))
    async with made.router.lifespan_context(made):
        while not made.state.fleet._known:  # what is wanted: before that, no deployment is 404
            await asyncio.sleep(0.01)
        transport = httpx.ASGITransport(made)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as opened:
            yield opened


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_without_a_key(guarded: httpx.AsyncClient) -> None:
    answer = await guarded.get("/v1/models")
    problem(answer, 401)
    assert answer.headers["www-authenticate"].startswith("Bearer")
    for headers in ({"Authorization": "Basic QUxM"}, {"Authorization": "Bearer"}, bearer("all"), bearer("")):
        problem(await guarded.get("/v1/models", headers=headers), 401)
    assert (await guarded.get("/healthz/live")).status_code == 200
    assert (await guarded.get("/openapi.json")).status_code == 200
    problem(await guarded.get("/metrics"), 401)
    problem(await guarded.get("/nope"), 401)


@pytest.mark.parametrize(
    ("key", "reads", "writes", "predicts"),
    [("ALL", 200, 415, 404), ("A", 200, 415, 404), ("W", 200, 415, 403), ("P", 200, 403, 404)],
)
async def test_scopes(guarded: httpx.AsyncClient, key: str, reads: int, writes: int, predicts: int) -> None:
    headers = bearer(key)
    assert (await guarded.get("/v1/models", headers=headers)).status_code == reads
    assert (await guarded.post("/v1/jobs", headers=headers)).status_code == writes
    answer = await guarded.post("/predict/none", headers=headers, json={"inputs": [1]})
    assert answer.status_code == predicts
    if predicts == 403:
        assert "predict" in problem(answer, 403)["detail"]


def test_keys_are_parsed() -> None:
    (base64,) = parse_keys("c2VjcmV0==")
    assert set(base64.scopes) == {"predict", "write", "admin"}
    assert parse_keys(None) == parse_keys(" , ") == ()
    with pytest.raises(Unprocessable, match="unknown scopes"):
        parse_keys("K=raed")
    with pytest.raises(Unprocessable, match="name of a scope"):
        parse_keys("K=predict,write")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_no_key_means_loopback(host: str) -> None:
    with pytest.raises(Conflict, match="no API key"):
        create_app(Settings(host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.9"])
def test_loopback_needs_no_key(host: str) -> None:
    create_app(Settings(host=host))
