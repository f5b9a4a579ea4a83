"""Every error as a problem body (RFC 9457), and under /v2 as the Open Inference Protocol wants it."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import (
    MEDIA_TYPE,
    BadRequest,
    InsufficientStorage,
    Internal,
    MethodNotAllowed,
    NotFound,
    Problem,
    Unavailable,
    Unprocessable,
)
from app.observe import request_id

log = logging.getLogger("enginesmith.http")
_CLIENT_CLOSED = 499  # nginx's word for it; nobody reads it
_INTERNAL_LOC = frozenset({"function-before", "function-after", "function-wrap", "tagged-union"})


def answer(problem: Problem, path: str) -> Response:
    """The response that a problem makes at a path."""
    headers = dict(problem.headers)
    if path.startswith("/v2/") or path == "/v2":
        text = f"{problem.detail}. {problem.hint}" if problem.hint else problem.detail
        return Response(orjson.dumps({"error": text}), problem.status, headers, "application/json")
    if problem.status in (429, 503):
        headers.setdefault("Retry-After", "5")
    return Response(orjson.dumps(problem.body(path), default=str), problem.status, headers, MEDIA_TYPE)


def translate(error: BaseException) -> Problem:
    """Any error in our vocabulary. What nobody foresaw is logged in full and told in a sentence."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        return invalid(error.errors())
    if isinstance(error, RedisError):
        log.warning("redis failed: %s", error)
        return Unavailable("Redis does not answer", code="redis_unavailable", hint="try again in a few seconds")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InsufficientStorage("the disk is full", hint="free some space, then try again")
    log.error("an error that nobody foresaw", exc_info=error)
    return Internal(
        "something went wrong inside the service", hint=f"its log has more, under request {request_id.get()}"
    )


def invalid(errors: Sequence[Mapping[str, Any]], where: str = "the request") -> Unprocessable:
    """A problem from pydantic's list of errors."""
    told = told_errors(errors)
    first = told[0]
    place = ".".join(str(p) for p in first["loc"])
    more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
    detail = f"{place}: {first['msg']}{more}" if place else f"{where}: {first['msg']}{more}"
    hint = "mend the fields that `errors` names; /docs shows what each takes"
    return Unprocessable(detail, errors=told[:50], hint=hint)


def told_errors(errors: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where and what, without pydantic's own vocabulary or the values that were sent."""
    told = []
    for error in errors:
        loc = [p for p in error.get("loc", ()) if not (isinstance(p, str) and _is_noise(p))]
        kind, message = error.get("type"), str(error.get("msg", "is wrong"))
        if kind == "extra_forbidden":
            message = "there is no such field"
        elif kind == "missing":
            message = "is required"
        elif kind == "string_pattern_mismatch" and loc and loc[-1] in ("model", "dataset", "baseline"):
            message = "is no reference: say a name, or name@number"
        told.append({"loc": loc, "msg": message.removeprefix("Value error, ")})
    return told


def _is_noise(part: str) -> bool:
    return part.split("[")[0] in _INTERNAL_LOC


def install(app: FastAPI) -> None:
    """Makes the app answer every error with a problem body."""
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _http)
    for kind in (RequestValidationError, RedisError, OSError):
        app.add_exception_handler(kind, _problem)
    app.add_exception_handler(ClientDisconnect, _gone)


async def _problem(request: Request, error: Exception) -> Response:
    return answer(translate(error), request.url.path)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED)


async def _http(request: Request, error: Exception) -> Response:
    """What the router and the framework raise by themselves."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    problem: Problem
    if error.status_code == 405:
        allowed = ", ".join(sorted(_methods(request.app, path)))
        problem = MethodNotAllowed(
            f"{request.method} is not possible here", hint=f"possible: {allowed}", headers={"Allow": allowed}
        )
    elif error.status_code == 404:
        problem = NotFound(f"there is nothing at {path}", hint="/docs lists what there is")
    elif error.status_code < 500:
        problem = BadRequest(str(error.detail))
    else:
        problem = Internal("something went wrong inside the service")
    return answer(problem, path)


def _methods(app: FastAPI, path: str) -> set[str]:
    """Every method that some route has at this path: the router names those of the first one only."""
    found: set[str] = set()
    for route in iter_route_contexts(app.routes):
        pattern = getattr(route, "path", None)
        if isinstance(pattern, str) and compile_path(pattern)[0].match(path):
            found |= set(getattr(route, "methods", None) or ())
    return found


class LastResort:
    """ASGI: answers 500 for what no handler knew, instead of handing it to the server, which would only close."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except ClientDisconnect:
            pass
        except Exception as error:
            problem = translate(error)
            if begun:
                raise  # half an answer is out: only a broken connection tells the client
            await answer(problem, scope["path"])(scope, receive, send)
        return None
