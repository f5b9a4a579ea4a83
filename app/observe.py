"""What a process says about itself: JSON logs on stderr with request and job ids, and metrics for Prometheus."""

from __future__ import annotations

import json
import logging
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import IO, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REGISTRY = CollectorRegistry()
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

REQUESTS = Counter("enginesmith_http_requests", "Requests answered", ["method", "route", "status"], registry=REGISTRY)
SECONDS = Histogram(
    "enginesmith_http_request_seconds",
    "Time from a request's first byte to its answer's last",
    ["method", "route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
    registry=REGISTRY,
)
IN_FLIGHT = Gauge("enginesmith_http_requests_in_flight", "Requests being answered", registry=REGISTRY)
UPLOADED = Counter("enginesmith_uploaded_bytes", "Bytes of uploads taken", ["kind"], registry=REGISTRY)

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
job_id: ContextVar[str | None] = ContextVar("job_id", default=None)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
log = logging.getLogger("enginesmith.http")


def exposition() -> bytes:
    """Every metric of this process in Prometheus' text form."""
    return generate_latest(REGISTRY)


class JsonLines(logging.Formatter):
    """One JSON object a line. Whatever is passed as `extra` is in it."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "process": self.process,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {k: v for k, v in (("request_id", request_id.get()), ("job_id", job_id.get())) if v}
        line |= {k: v for k, v in vars(record).items() if k not in _KNOWN}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logs(level: str, process: str, stream: IO[str] | None = None) -> None:
    """Sends every log of this process to stderr as JSON, uvicorn's and the libraries' too."""
    lines = logging.StreamHandler(stream or sys.stderr)
    lines.setFormatter(JsonLines(process))
    root = logging.getLogger()
    root.handlers[:] = [lines]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for noisy in ("httpx", "httpcore", "asyncio", "PIL"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it logs what the answer says already


@contextmanager
def about_job(id: str) -> Iterator[None]:
    """Logs written inside carry this job's id."""
    token = job_id.set(id)
    try:
        yield
    finally:
        job_id.reset(token)


class Requests:
    """ASGI: gives every request an id (its own X-Request-Id if it brings a decent one), counts and times it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        id = _given_id(scope) or uuid.uuid4().hex
        token = request_id.set(id)
        status = 499  # the client went away before there was an answer
        started = time.perf_counter()

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", id.encode())]
            await send(message)

        IN_FLIGHT.inc()
        try:
            await self.app(scope, receive, marked)
        finally:
            IN_FLIGHT.dec()
            took = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            REQUESTS.labels(method, route, status).inc()
            SECONDS.labels(method, route).observe(took)
            if log.isEnabledFor(logging.DEBUG):
                facts = {"method": method, "path": scope["path"], "status": status, "ms": round(took * 1e3, 2)}
                log.debug("%s %s %d", method, scope["path"], status, extra=facts)
            request_id.reset(token)
        return None


def _given_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            return text if 0 < len(text) <= 128 and text.isascii() and text.isprintable() else None
    return None
