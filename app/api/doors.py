"""What stands in front of the whole app where a setting asks for it: a port of its own for the management API, and
pages of other origins that may ask (CORS)."""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.hot import WHOLE
from app.api.pages import origins
from app.api.problems import answer
from app.errors import NotFound
from app.settings import Settings

_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
_TOLD = ("Content-Length", "ETag", "Location", "Preference-Applied", "Retry-After", "X-Request-Id")
_PREDICTIONS = ("/predict", "/v2", "/healthz")


def doors(app: ASGIApp, settings: Settings) -> ASGIApp:
    """The app behind what the settings ask for; most ask for nothing. Raises Unprocessable for what is no origin."""
    if settings.manage_port is not None:
        app = Ports(app, settings.manage_port)
    return Origins(app, origins(settings.cors_origins)) if settings.cors_origins else app


class Ports:
    """ASGI: where the management API has a port of its own, predictions and health alone are answered on the other."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self.port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope.get("server") or (None, None))[1] != self.port:
            path = scope["path"]
            if not any(path == of or path.startswith(of + "/") for of in _PREDICTIONS):
                problem = NotFound(
                    "only predictions are answered on this port",
                    code="other_port",
                    hint="the management API has a port of its own: ask whoever runs this service",
                )
                return await answer(problem, path)(scope, receive, send)
        return await self.app(scope, receive, send)


class Origins:
    """ASGI: lets scripts of these origins read answers; none is let in with it who lacks a key."""

    def __init__(self, app: ASGIApp, origins: list[str]) -> None:
        self.app = CORSMiddleware(
            app, allow_origins=origins, allow_methods=_METHODS, allow_headers=["*"], expose_headers=_TOLD, max_age=600
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if WHOLE in scope.get("extensions", {}):  # whoever writes an answer in one go would leave our headers out
            scope = {**scope, "extensions": {k: v for k, v in scope["extensions"].items() if k != WHOLE}}
        await self.app(scope, receive, send)
