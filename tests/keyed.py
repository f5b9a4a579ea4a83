"""A service whose callers need keys, and the keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from app.domain.keys import Key, Limits, Scope, make
from app.main import create_app
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.keys import put_key, tell_of_change

ALL: tuple[Scope, ...] = ("predict", "write", "admin")


@asynccontextmanager
async def replica(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    made = create_app(settings)
    async with made.router.lifespan_context(made):
        transport = httpx.ASGITransport(made, client=("10.0.0.7", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as opened:
            yield opened


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def issue(settings: Settings, *, scopes: tuple[Scope, ...] = ALL, **limits: float) -> tuple[Key, str]:
    key, token = make("somebody", scopes, Limits.model_validate(limits))
    put_key(Artifacts(settings.artifacts_url), key)
    assert tell_of_change(str(settings.redis_url))
    return key, token


async def becomes(client: httpx.AsyncClient, status: int, headers: dict[str, str] | None = None) -> httpx.Response:
    """What GET /v1/models answers once it answers that; within five seconds, on a machine that may be busy."""
    for _ in range(100):
        answer = await client.get("/v1/models", headers=headers)
        if answer.status_code == status:
            return answer
        await asyncio.sleep(0.05)
    raise AssertionError(f"it still is {answer.status_code}, not {status}")
