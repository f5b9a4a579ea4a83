"""The app: builds the parts, mounts the routes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from app import tracing
from app.api import (
    auth,
    datasets,
    deployments,
    events,
    health,
    jobs,
    kinds,
    limits,
    models,
    oip,
    oip_routes,
    predict,
    problems,
    recipes,
    report,
    usage,
    webhooks,
)
from app.api.doors import doors
from app.api.examples import ANY_PROBLEM
from app.api.hot import Hot
from app.api.keyring import Keyring, watched
from app.api.page import completed
from app.api.pages import Pages
from app.observe import Requests, exposition
from app.parts import looked_after, opened
from app.report.press import Press
from app.room import Room
from app.serving.apart.front import FrontFleet
from app.serving.fleet import Fleet
from app.serving.served import Served
from app.settings import Settings
from app.storage.keys import check_exposure
from app.version import VERSION
from app.webhooks.addresses import parse_allowed

# kinds before /v1/jobs/{id}: the router looks at one after the other.
ROUTERS = (
    predict,
    models,
    recipes,
    datasets,
    kinds,
    jobs,
    events,
    report,
    deployments,
    webhooks,
    usage,
    oip_routes,
    health,
)


class App(FastAPI):
    """FastAPI, but that predictions never come as far as its middlewares and its router."""

    hot: Hot
    front: ASGIApp | None = None  # what stands before all of it, if anything does

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = completed(super().openapi())
        return self.openapi_schema

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.front is not None and scope["type"] == "http":
            return await self.front(scope, receive, send)
        return await self.inside(scope, receive, send)

    async def inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and (route := self.hot.route(scope)) is not None:
            return await self.hot(route, scope, receive, send)
        return await super().__call__(scope, receive, send)


def create_app(settings: Settings) -> FastAPI:
    """Raises Conflict for settings that would let strangers in, Unprocessable for some that make no sense."""
    keyring = Keyring(settings)
    check_exposure(settings)
    tracing.check(settings)
    parse_allowed(settings.webhooks_allow)
    app = App(
        title="Enginesmith",
        version=VERSION,
        description="Give it a trained model; it gives back a faster one, and serves it.",
        lifespan=_lifespan,
        redirect_slashes=False,
        responses=ANY_PROBLEM,
    )
    app.state.settings = settings
    app.state.keyring = keyring
    pages = Pages(settings)
    app.hot = Hot(
        app.state, settings, keyring, pages, predict=(predict.answer, predict.check), infer=(oip.infer, oip.check)
    )
    if settings.manage_port is not None or settings.cors_origins:
        app.front = doors(app.inside, settings)
    for module in ROUTERS:
        app.include_router(module.router)
    problems.install(app)
    # Added last is met first.
    app.add_middleware(auth.Keys, keyring=keyring, pages=pages)
    app.add_middleware(limits.Limits, settings=settings)
    app.add_middleware(problems.LastResort)
    app.add_middleware(Requests)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    app.state.stopping = False
    async with opened(settings, "app") as parts, contextlib.AsyncExitStack() as others:
        app.state.artifacts, app.state.catalog, app.state.queue = parts.artifacts, parts.catalog, parts.queue
        app.state.room = Room(settings, parts.artifacts, parts.catalog)
        app.state.press = Press(settings)
        others.push_async_callback(app.state.press.close)
        await others.enter_async_context(watched(app.state.keyring, parts.artifacts, parts.catalog.redis))
        fleet: Served
        if settings.engines_socket is None:
            await others.enter_async_context(looked_after(parts))
            fleet = Fleet(settings, parts.catalog, parts.artifacts, parts.queue)
        else:
            fleet = FrontFleet(settings.engines_socket, exposition)
        app.state.fleet = fleet
        await fleet.start()
        try:
            yield
        finally:
            app.state.stopping = True
            await fleet.stop()
