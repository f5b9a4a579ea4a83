"""Who may do what: every request is asked for its key before a byte of its body is read, and whatever changes something
leaves a line in the log."""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.keyring import Keyring
from app.api.pages import READING, Pages
from app.api.problems import answer
from app.domain.keys import Key
from app.errors import Problem

OPEN = ("/healthz", "/docs", "/redoc", "/openapi.json")
WEBHOOKS = "/v1/webhooks"
CALLER = "enginesmith.key"  # in the scope of a request: the key that it came with
audit = logging.getLogger("enginesmith.audit")


def needed(method: str, path: str) -> str | None:
    """The scope that a request needs: None for what is open, "any" for any valid key."""
    if method == "OPTIONS" or any(path == o or path.startswith(o + "/") for o in OPEN):
        return None
    if path.startswith(("/predict/", "/v2/")):
        return "predict" if method == "POST" else "any"
    if path == WEBHOOKS or path.startswith(WEBHOOKS + "/"):  # whoever reads one may call its receiver
        return "admin"
    if path.startswith("/v1/") and method not in READING:
        return "write"
    return "any"


def caller(scope: Scope) -> Key | None:
    """The key that a request came with; None where none is asked for."""
    found: Key | None = scope.get(CALLER)
    return found


class Keys:
    """ASGI: refuses requests without a key that may; writes down who changed what, and who tried."""

    def __init__(self, app: ASGIApp, keyring: Keyring, pages: Pages) -> None:
        self.app = app
        self.keyring, self.pages = keyring, pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["method"] not in READING and scope["path"].startswith("/v1/"):
            return await self._audited(scope, receive, send)
        return await self._admitted(scope, receive, send)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = needed(scope["method"], scope["path"])
        if wanted is not None:
            given = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
            try:
                if self.keyring.asks:
                    scope[CALLER] = self.keyring.known(wanted, given)
                    self.keyring.allow(scope[CALLER], wanted)
                else:
                    self.pages.check(scope["method"], dict(scope["headers"]))
            except Problem as problem:
                return await answer(problem, scope["path"])(scope, receive, send)
        return await self.app(scope, receive, send)

    async def _audited(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 499  # the client went away before there was an answer

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._admitted(scope, receive, watched)
        finally:
            key, client = caller(scope), scope.get("client")
            about = {"method": scope["method"], "path": scope["path"], "status": status}
            who = {"key": key.owner if key else None, "key_name": key.name if key else None}
            audit.info("%(method)s %(path)s: %(status)d", about, extra=about | who | {"client": client and client[0]})
