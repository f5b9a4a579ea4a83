"""What a process says about itself: JSON logs on stderr with request and job ids, and metrics for Prometheus."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from itertools import accumulate
from typing import IO, Any

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import tracing
from app.memory import resident_bytes

REGISTRY = CollectorRegistry()
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

UPLOADED = Counter("enginesmith_uploaded_bytes", "Bytes of uploads taken", ["kind"], registry=REGISTRY)

_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
job_id: ContextVar[str | None] = ContextVar("job_id", default=None)
_LONGEST_ID = 128
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class _Tally:
    """What has been answered by one route to one method. Plain numbers, because two of these are written per request:
    prometheus_client's own counters take a lock each and walk through the buckets."""

    __slots__ = ("buckets", "seconds", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.buckets = [0] * (len(_BOUNDS) + 1)
        self.seconds = 0.0


class InFlight:
    """Requests being answered."""

    __slots__ = ("count", "predictions")

    def __init__(self) -> None:
        self.count = 0
        self.predictions = 0  # of them


_tallies: dict[tuple[str, str], _Tally] = {}
_access: Callable[[dict[str, Any]], None] | None = None
IN_FLIGHT = InFlight()


def answered(
    method: str,
    route: str,
    status: int,
    seconds: float,
    *,
    path: str,
    request_id: str,
    client: str | None = None,
    size: int | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Counts one request, and logs it where the access log is on. Once per request, on the event loop only.

    route: its template, such as /predict/{deployment}: a series each, so never a path. seconds: from the first byte of
    the request to the last of the answer. size: bytes of the answer's body. detail: more for the log, such as the
    deployment and version that answered.
    """
    tally = _tallies.get((method, route))
    if tally is None:
        method = method if method in _METHODS else "other"
        tally = _tallies.setdefault((method, route), _Tally())
    tally.statuses[status] = tally.statuses.get(status, 0) + 1
    tally.buckets[bisect_left(_BOUNDS, seconds)] += 1
    tally.seconds += seconds
    if _access is not None:
        line = {"method": method, "route": route, "path": path, "status": status, "ms": round(seconds * 1e3, 3)}
        _access(line | {"bytes": size, "client": client, "request_id": request_id} | dict(detail or {}))


class _Answered(Collector):
    """The tallies as Prometheus' families, and what this process takes."""

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "enginesmith_http_requests", "Requests answered", labels=["method", "route", "status"]
        )
        times = HistogramMetricFamily(
            "enginesmith_http_request_seconds",
            "Time from a request's first byte to its answer's last",
            labels=["method", "route"],
        )
        for (method, route), tally in list(_tallies.items()):
            for status, count in sorted(tally.statuses.items()):
                requests.add_metric([method, route, str(status)], count)
            bounds = [*map(floatToGoString, _BOUNDS), "+Inf"]
            counts = list(zip(bounds, accumulate(tally.buckets), strict=True))
            times.add_metric([method, route], counts, tally.seconds)
        yield requests
        yield times
        yield CounterMetricFamily("process_cpu_seconds", "CPU time of this process", value=time.process_time())
        yield GaugeMetricFamily("process_resident_memory_bytes", "Memory of this process", value=resident_bytes())
        yield GaugeMetricFamily("enginesmith_http_requests_in_flight", "Requests being answered", value=IN_FLIGHT.count)
        # Those that only wait, for a job's events, are none.
        predictions = IN_FLIGHT.predictions
        yield GaugeMetricFamily("enginesmith_predictions_in_flight", "Predictions being answered", value=predictions)


REGISTRY.register(_Answered())


def log_access(process: str, stream: IO[str] | None = None) -> None:
    """From now on every request is one JSON line on stderr, whatever the log's level is."""
    global _access
    out = stream or sys.stderr
    about = {"level": "INFO", "process": process, "pid": os.getpid(), "logger": "enginesmith.access"}

    def write(line: dict[str, Any]) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        # One write, so that no other line comes in between; a log that is gone must not cost an answer.
        with suppress(OSError, ValueError):
            out.write(json.dumps({"time": time, **about, **line}, default=str) + "\n")

    _access = write


def log_no_access() -> None:
    """The opposite of `log_access`, and how a process starts."""
    global _access
    _access = None


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
        size = 0
        started = time.perf_counter()

        async def marked(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", id.encode())]
            else:
                size += len(message.get("body", b""))
            await send(message)

        IN_FLIGHT.count += 1
        try:
            if tracing.on:
                await self._traced(scope, receive, marked, id, lambda: status)
            else:
                await self.app(scope, receive, marked)
        finally:
            IN_FLIGHT.count -= 1
            route = _route(scope)
            client = scope["client"][0] if scope.get("client") else None
            took = time.perf_counter() - started
            answered(scope["method"], route, status, took, path=scope["path"], request_id=id, client=client, size=size)
            request_id.reset(token)
        return None

    async def _traced(self, scope: Scope, receive: Receive, send: Send, id: str, status: Callable[[], int]) -> None:
        header = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"), None)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        with tracing.serve(method, scope["path"], header, id) as span:
            try:
                await self.app(scope, receive, send)
            finally:
                if span is not None:
                    tracing.told(span, method, _route(scope), status())


def _route(scope: Scope) -> str:
    """The template of the route that matched."""
    return getattr(scope.get("route"), "path", "unmatched")


def _given_id(scope: Scope) -> str | None:
    return next((decent_id(value) for name, value in scope["headers"] if name == b"x-request-id"), None)


def decent_id(id: bytes) -> str | None:
    """A client's own id of its request, if it is one that a log can hold."""
    text = id.decode("latin-1")
    return text if 0 < len(text) <= _LONGEST_ID and text.isascii() and text.isprintable() else None
