"""Who may do what: keys with scopes, compared in constant time. Without a key the service answers on loopback only."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.problems import answer
from app.errors import Conflict, Forbidden, Unauthorized, Unprocessable
from app.settings import Settings

SCOPES = frozenset({"predict", "write", "admin"})
OPEN = ("/healthz", "/docs", "/redoc", "/openapi.json")
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="enginesmith"'}


@dataclass(frozen=True)
class Key:
    """A key as its digest, and what it may do. `admin` may do everything."""

    digest: bytes
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        return scope == "any" or scope in self.scopes or "admin" in self.scopes


def parse_keys(text: str | None) -> tuple[Key, ...]:
    """ "KEY" (all scopes) or "KEY=predict+write", several with commas. Raises Unprocessable for an unknown scope."""
    found = []
    for part in filter(None, (p.strip() for p in (text or "").split(","))):
        key, equals, scopes = part.rpartition("=")
        if not equals or not scopes:  # a key that ends in "=", as base64 does, has no scopes behind it
            key, scopes = part, "admin+predict+write"
        if key in SCOPES:  # "KEY=predict,write" would make a key of the word "write", with every scope
            raise Unprocessable(
                f"ENGINESMITH_API_KEYS has the key {key!r}, which is the name of a scope",
                code="bad_keys",
                hint="commas part keys, and plus signs scopes: KEY=predict+write",
            )
        named = frozenset(scopes.split("+"))
        if unknown := named - SCOPES:
            raise Unprocessable(
                f"ENGINESMITH_API_KEYS names unknown scopes: {sorted(unknown)}",
                code="bad_keys",
                hint=f"scopes are {', '.join(sorted(SCOPES))}: KEY=predict+write",
            )
        found.append(Key(_digest(key), named))
    return tuple(found)


def check_exposure(settings: Settings, keys: tuple[Key, ...]) -> None:
    """Raises Conflict when strangers could reach a service that asks for no key."""
    if not keys and not _is_loopback(settings.host):
        raise Conflict(
            f"no API key is configured, so the service answers on a loopback address only, not on {settings.host}",
            code="no_keys",
            hint="set ENGINESMITH_API_KEYS, or use --host 127.0.0.1",
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def needed(method: str, path: str) -> str | None:
    """The scope that a request needs: None for what is open, "any" for any valid key."""
    if method == "OPTIONS" or any(path == o or path.startswith(o + "/") for o in OPEN):
        return None
    if path.startswith(("/predict/", "/v2/")):
        return "predict" if method == "POST" else "any"
    if path.startswith("/v1/") and method not in ("GET", "HEAD"):
        return "write"
    return "any"


class Keys:
    """ASGI: refuses requests without a key that may, before a byte of their body is read."""

    def __init__(self, app: ASGIApp, keys: tuple[Key, ...]) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.keys:
            wanted = needed(scope["method"], scope["path"])
            given = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
            if wanted is not None and (problem := refusal(self.keys, wanted, given)) is not None:
                return await answer(problem, scope["path"])(scope, receive, send)
        return await self.app(scope, receive, send)


def refusal(keys: tuple[Key, ...], wanted: str, authorization: bytes) -> Unauthorized | Forbidden | None:
    """Why a request with this header Authorization must not have what the scope `wanted` is for, if so."""
    kind, _, token = authorization.decode("latin-1").partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        return Unauthorized(
            "this needs a key", hint="send it as Authorization: Bearer KEY", headers=_CHALLENGE, code="no_key"
        )
    digest = _digest(token.strip())
    # Every key is compared, so that the time taken tells nothing about which one was nearly right.
    held = [key for key in keys if hmac.compare_digest(key.digest, digest)]
    if not held:
        return Unauthorized("this key is not known here", headers=_CHALLENGE, code="unknown_key")
    if not any(key.may(wanted) for key in held):
        return Forbidden(
            f"this key lacks the scope {wanted!r}", hint="use another key, or have this one's scopes widened"
        )
    return None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
