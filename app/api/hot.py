"""The hot path: predictions are answered here, before any middleware or router, as plain ASGI.

What FastAPI and the middlewares do for every other route is done for these as well, at a few microseconds a request:
keys, size limits, request ids, metrics, traces, problem bodies. Their routes in FastAPI are documentation.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from app import tracing
from app.api import limits, problems
from app.api.flights import Flight, Flights, Gone
from app.api.keyring import Keyring
from app.api.pages import Pages
from app.errors import Problem
from app.observe import IN_FLIGHT, answered, decent_id, request_id
from app.serving.waiting import Stages
from app.settings import Settings

if TYPE_CHECKING:
    from app.serving.served import Served

# An ASGI extension of our own server's: `await whole(status, headers, body)` sends an answer in one write.
WHOLE = "enginesmith.whole"
CLOSED_BY_CLIENT = 499  # nginx's word for it; nobody reads it
_ROUTES_KEPT = 4096
_PARTS_KEPT = 1024
_PREDICT, _MODELS, _INFER = "/predict/", "/v2/models/", "/infer"


class Told(NamedTuple):
    """An answer. Content-Length and X-Request-Id are added by `Hot`."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Ask:
    """One prediction asked for: its whole body, still as it came, and what is needed to answer it.

    headers: by lower-case name. came: time.monotonic at the first byte. ref, stages: filled in by who answers, for the
    access log and for traces; `stages` is wanted only where it is not None. flight: where its bytes are counted.
    """

    __slots__ = ("body", "came", "fleet", "flight", "headers", "name", "query", "ref", "settings", "stages", "version")
    flight: Flight

    def __init__(
        self,
        name: str,
        version: str | None,
        headers: dict[bytes, bytes],
        query: bytes,
        body: bytes,
        fleet: Served,
        settings: Settings,
        came: float,
    ) -> None:
        self.name = name
        self.version = version
        self.headers = headers
        self.query = query
        self.body = body
        self.fleet = fleet
        self.settings = settings
        self.came = came
        self.ref: str | None = None
        self.stages: Stages | None = None


Answer = Callable[[Ask], Awaitable[Told]]
Check = Callable[[Ask], Awaitable[None]]  # raises what a request is refused for whatever its body says


class Route:
    """A path of the hot path. path: without the root that a proxy may put in front. label: for metrics."""

    __slots__ = ("answer", "check", "label", "name", "path", "version")

    def __init__(
        self, answer: Answer, check: Check | None, label: str, path: str, name: str, version: str | None = None
    ) -> None:
        self.answer, self.check = answer, check
        self.label, self.path, self.name, self.version = label, path, name, version


class Hot:
    """predict answers POST /predict/{name}, infer POST /v2/models/{name}[/versions/{version}]/infer; each with what may
    refuse a large body before it has come.

    state: of the app; its `fleet` is there once the app has started.
    """

    def __init__(
        self,
        state: Any,
        settings: Settings,
        keyring: Keyring,
        pages: Pages,
        *,
        predict: tuple[Answer, Check | None],
        infer: tuple[Answer, Check | None] | None = None,
    ) -> None:
        self._state = state
        self._settings = settings
        self._keyring, self._pages = keyring, pages
        self._predict = predict
        self._infer = infer
        self._most = settings.max_predict_bytes
        self._routes: dict[str, Route] = {}
        self._flights = Flights(settings)
        # As long as a UUID, and unlike the ids of other processes; a UUID of its own costs each request 2 µs.
        self._prefix = os.urandom(8).hex()
        self._count = itertools.count(int.from_bytes(os.urandom(3)))

    def route(self, scope: Scope) -> Route | None:
        """Of a POST: its route, or None where it is none of ours."""
        path: str = scope["path"]
        try:
            return self._routes[path]
        except KeyError:
            root = scope.get("root_path", "")
            own = path[len(root) :] if root and path.startswith(root + "/") else path
            found = self._parse(own)
            if found is not None:
                if len(self._routes) >= _ROUTES_KEPT:
                    self._routes.clear()
                self._routes[path] = found
            return found

    def _parse(self, path: str) -> Route | None:
        if path.startswith(_PREDICT):
            name = path[len(_PREDICT) :]
            if name and "/" not in name:
                return Route(*self._predict, "/predict/{deployment}", path, name)
        elif self._infer is not None and path.startswith(_MODELS) and path.endswith(_INFER):
            parts = path[len(_MODELS) : -len(_INFER)].split("/")
            if len(parts) == 1 and parts[0]:
                return Route(*self._infer, "/v2/models/{name}/infer", path, parts[0])
            if len(parts) == 3 and parts[0] and parts[1] == "versions" and parts[2]:
                label = "/v2/models/{name}/versions/{version}/infer"
                return Route(*self._infer, label, path, parts[0], parts[2])
        return None

    @property
    def held(self) -> int:
        """Bytes of the bodies of all requests that are being answered."""
        return self._flights.held

    async def __call__(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        came = time.monotonic()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id")
        id = (decent_id(given) if given else None) or f"{self._prefix}{next(self._count):016x}"
        token = request_id.set(id)
        ask = Ask(
            route.name, route.version, headers, scope["query_string"], b"", self._state.fleet, self._settings, came
        )
        told: Told | None = None
        IN_FLIGHT.count += 1
        IN_FLIGHT.predictions += 1
        try:
            ask.flight = flight = self._flights.enter(receive, came)
            told = await self._told(route, ask, flight)
            if told is not None:
                await _send(told, id, ask, flight, scope, send)
        finally:
            IN_FLIGHT.count -= 1
            IN_FLIGHT.predictions -= 1
            self._count_in(route, scope, ask, id, told)
            request_id.reset(token)

    async def _told(self, route: Route, ask: Ask, flight: Flight) -> Told | None:
        """The answer, whatever happens; None where nobody is left to hear it."""
        try:
            try:
                headers = ask.headers
                if self._keyring.asks:
                    self._keyring.admit("predict", headers.get(b"authorization", b""))
                else:
                    self._pages.check("POST", headers)
                declared = headers.get(b"content-length")
                if declared is not None and declared.isdigit() and int(declared) > self._most:
                    raise limits.too_large(self._most, limits.PREDICT)
                ask.body = await self._body(route, ask, flight)
                if tracing.on:
                    ask.stages = Stages()
                return await route.answer(ask)
            finally:
                self._flights.leave(flight)
        except ClientDisconnect:
            return None
        except asyncio.CancelledError:
            if flight.stopped is None:
                raise
            flight.task.uncancel()
            return None if isinstance(flight.stopped, Gone) else refused(flight.stopped, route.path)
        except Exception as error:
            return refused(problems.translate(error), route.path)

    async def _body(self, route: Route, ask: Ask, flight: Flight) -> bytes:
        """The whole body. Raises TooLarge, Overloaded; what `check` refuses a body for that comes in pieces;
        ClientDisconnect."""
        body, more = await _part(flight)
        if more:
            if route.check is not None:
                await route.check(ask)  # what is refused anyway need not travel
            parts = [body]
            while more:
                flight.touched = time.monotonic()
                body, more = await _part(flight)
                parts.append(body)
                if len(parts) > _PARTS_KEPT:  # a body that comes by the byte must not cost fifty times its size
                    parts = [b"".join(parts)]
            body = b"".join(parts)
        flight.receiving = False
        return body

    def _count_in(self, route: Route, scope: Scope, ask: Ask, id: str, told: Told | None) -> None:
        now = time.monotonic()
        status, size = (CLOSED_BY_CLIENT, 0) if told is None else (told.status, len(told.body))
        client = scope.get("client")
        answered(
            "POST",
            route.label,
            status,
            now - ask.came,
            path=scope["path"],
            request_id=id,
            client=client[0] if client else None,
            size=size,
            detail=None if ask.ref is None else {"deployment": route.name, "model": ask.ref},
        )
        if tracing.on:
            tracing.predicted(
                ask.headers, route.name, ask.ref, ask.came, now, ask.stages, status, route=route.label, request_id=id
            )


async def _part(flight: Flight) -> tuple[bytes, bool]:
    """What has come of the body, and whether more comes."""
    message = await flight.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    body: bytes = message.get("body", b"")
    flight.take(len(body))
    return body, message.get("more_body", False)


async def _send(told: Told, id: str, ask: Ask, flight: Flight, scope: Scope, send: Send) -> None:
    status, headers, body = told
    headers = [*headers, (b"content-length", b"%d" % len(body)), (b"x-request-id", id.encode())]
    if not flight.receiving and "extensions" in scope and (whole := scope["extensions"].get(WHOLE)) is not None:
        await whole(status, headers, body)
        return
    if flight.receiving and (b"content-length" in ask.headers or b"transfer-encoding" in ask.headers):
        # Refused before the body had come: the rest is taken in for a while, so that the answer is heard.
        send = limits.Lingering(send, limits.Body(flight.receive, sys.maxsize, limits.PREDICT))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def refused(problem: Problem, path: str) -> Told:
    """The answer that a problem makes at a path."""
    response = problems.answer(problem, path)
    headers = [(name, value) for name, value in response.raw_headers if name != b"content-length"]
    return Told(response.status_code, headers, bytes(response.body))
