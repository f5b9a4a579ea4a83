"""How large a body may be: refused by its Content-Length before it is read, or while it is read."""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import answer
from app.errors import TooLarge
from app.settings import MiB, Settings

PREDICT = "MAX_PREDICT_BYTES"
MULTIPART_EXTRA = MiB  # boundaries and headers of parts
# What is still taken in after an early refusal, so that a client which only reads once it has written gets its answer.
LINGER_BYTES = 256 * MiB
LINGER_S = 30.0
LINGER_IDLE_S = 10.0  # a client on a busy machine may pause between two chunks


def limit(settings: Settings, method: str, path: str) -> tuple[int, str]:
    """(bytes, the setting that says so) for a request that is no prediction: see app/api/flights.py for those."""
    if method == "POST" and path in ("/v1/models", "/v1/datasets"):
        return settings.max_upload_bytes + settings.max_json_bytes + MULTIPART_EXTRA, "MAX_UPLOAD_BYTES"
    return settings.max_json_bytes, "MAX_JSON_BYTES"


class Limits:
    """ASGI: counts bodies, and lets an early refusal be heard."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        most, setting = limit(self.settings, scope["method"], scope["path"])
        declared = _declared(scope)
        body = Body(receive, most, setting)
        sending = Lingering(send, body) if declared else send
        if declared and declared > most:
            return await answer(too_large(most, setting), scope["path"])(scope, receive, sending)
        return await self.app(scope, body, sending)


class Body:
    """A request's body as it is received, counted."""

    def __init__(self, receive: Receive, most: int, setting: str) -> None:
        self._receive = receive
        self.most, self.setting = most, setting
        self.count = 0
        self.complete = False

    async def __call__(self) -> Message:
        message = await self.raw()
        if self.count > self.most:
            raise too_large(self.most, self.setting)
        return message

    async def raw(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request":
            self.complete = True
        else:
            self.count += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        return message


class Lingering:
    """Sends the answer; where the body was not read to its end, closes only after reading on for a while."""

    def __init__(self, send: Send, body: Body) -> None:
        self._send = send
        self._body = body
        self._closing = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400 and not self._body.complete:
            self._closing = True
            message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        if self._closing and message["type"] == "http.response.body" and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _drain(self) -> None:
        until = time.monotonic() + LINGER_S
        stop_at = self._body.count + LINGER_BYTES
        while not self._body.complete and self._body.count < stop_at and time.monotonic() < until:
            try:
                await asyncio.wait_for(self._body.raw(), LINGER_IDLE_S)
            except TimeoutError:
                return


def _declared(scope: Scope) -> int:
    """The body's size as announced; 1 where it is chunked; 0 where there is none."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 1
        if name == b"transfer-encoding":
            return 1
    return 0


def too_large(most: int, setting: str) -> TooLarge:
    """The error for a body over the limit. setting: the one that says so."""
    return TooLarge(
        f"the body is larger than {most} bytes",
        hint=f"send less, or have ENGINESMITH_{setting} raised where the service is started",
    )
