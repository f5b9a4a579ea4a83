"""OpenTelemetry traces, from a request through its job to the engine, where an OTLP endpoint is set.

A span is written down when it is over, as plain facts; a thread of its own encodes and sends them (app/spans.py). What
cannot be sent is dropped and counted: nothing here waits, and while `on` is False nothing here is called.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from app.settings import Settings
from app.spans import Facts, Sender, check

__all__ = ["check", "current", "fail", "on", "phase", "predicted", "serve", "span", "start", "stop", "traceparent"]

on = False
_sender: Sender | None = None
_ratio = 1.0
_W3C = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_UNTRACED = ("/healthz", "/metrics")
_PHASES_MAX = 200
_STAGES = (
    ("queue", "came", "started"),
    ("compute_input", "started", "gathered"),
    ("compute_infer", "gathered", "ended"),
    ("compute_output", "ended", "answered"),
)


class Stages(Protocol):
    """The moments of one request in a batcher (time.monotonic; 0: not reached), and the batch that it was in."""

    came: float
    started: float
    gathered: float
    ended: float
    answered: float
    rows: int
    requests: int


class Parent(NamedTuple):
    trace: int
    span: int
    sampled: bool


class Span:
    """Something that is going on. Nothing is sent of one that is not sampled, but its context still travels on."""

    def __init__(self, name: str, kind: str, parent: Parent | None, attributes: dict[str, Any]) -> None:
        self.name, self.kind, self.attributes = name, kind, attributes
        self.parent = parent.span if parent else 0
        self.trace = parent.trace if parent else _new(128)
        self.sampled = parent.sampled if parent else _chosen(self.trace)
        self.id = _new(64)
        self.started = time.time_ns()
        self.error: str | None = None
        self.phase: Span | None = None
        self.phases = 0

    @property
    def context(self) -> Parent:
        return Parent(self.trace, self.id, self.sampled)

    def end(self) -> None:
        if self.phase is not None:
            self.phase.end()
            self.phase = None
        if self.sampled and _sender is not None:
            _sender.put(
                Facts(
                    self.name, self.kind, self.trace, self.id, self.parent, self.started, time.time_ns(),
                    self.attributes, self.error,
                )
            )  # fmt: skip


_current: ContextVar[Span | None] = ContextVar("span", default=None)


def start(settings: Settings, process: str) -> None:
    """Begins to send where an endpoint is set, else does nothing. process: app or worker.

    Raises Conflict where the packages are missing or the endpoint is no URL.
    """
    global on, _sender, _ratio
    stop(0)
    if settings.otlp_endpoint:
        check(settings)
        _ratio = settings.trace_ratio
        _sender = Sender(settings.otlp_endpoint, f"enginesmith-{process}")
        on = True


def stop(patience_s: float = 2.0) -> None:
    """Sends what is left, for at most `patience_s`; from then on nothing is traced."""
    global on, _sender
    sender, _sender, on = _sender, None, False
    if sender is not None:
        sender.stop(patience_s)


def current() -> Span | None:
    """The span that this is inside of."""
    return _current.get()


def traceparent() -> str | None:
    """The W3C header that continues the current trace elsewhere."""
    inside = _current.get()
    return f"00-{inside.trace:032x}-{inside.id:016x}-{int(inside.sampled):02x}" if inside else None


def continued(header: str | None) -> Parent | None:
    """What a W3C traceparent says; None for one that is missing or wrong, as the standard wants it."""
    found = _W3C.fullmatch(header.strip()) if header else None
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5]):
        return None
    parent = Parent(int(found[2], 16), int(found[3], 16), bool(int(found[4], 16) & 1))
    return parent if parent.trace and parent.span else None


@contextmanager
def span(
    name: str, kind: str = "internal", traceparent: str | None = None, root: bool = False, **attributes: Any
) -> Iterator[Span | None]:
    """Traces what is inside, as a part of the current span. root: of `traceparent` instead, or a trace of its own."""
    above = _current.get()
    if not on or (above is None and not root):
        yield None
        return
    made = Span(name, kind, continued(traceparent) if above is None or root else above.context, attributes)
    token = _current.set(made)
    try:
        yield made
    except BaseException as error:
        made.error = made.error or f"{type(error).__name__}: {error}"
        raise
    finally:
        _current.reset(token)
        made.end()


def phase(name: str) -> None:
    """The current span has come to another phase: the last one ends, and this one begins."""
    inside = _current.get()
    if inside is None or (inside.phase and inside.phase.name == name) or inside.phases >= _PHASES_MAX:
        return
    if inside.phase is not None:
        inside.phase.end()
    inside.phases += 1
    inside.phase = Span(name, "internal", inside.context, {})


def fail(why: str) -> None:
    """The current span has failed."""
    inside = _current.get()
    if inside is not None:
        inside.error = why
        if inside.phase is not None:
            inside.phase.error = why


@contextmanager
def serve(method: str, path: str, header: str | None, request_id: str) -> Iterator[Span | None]:
    """A request to the API. Its route and status are known in the end: `told`."""
    if path.startswith(_UNTRACED):
        yield None
        return
    attributes = {"http.request.method": method, "url.path": path, "enginesmith.request_id": request_id}
    with span(method, "server", header, root=True, **attributes) as made:
        yield made


def told(made: Span, method: str, route: str, status: int) -> None:
    """What a request to the API came to."""
    made.name = f"{method} {route}"
    made.attributes |= {"http.route": route, "http.response.status_code": status}
    if status >= 500:
        made.error = f"HTTP {status}"


def predicted(
    headers: Mapping[bytes, bytes],
    deployment: str,
    ref: str | None,
    started_s: float,
    ended_s: float,
    stages: Stages | None,
    status: int,
    *,
    route: str = "/predict/{deployment}",
    request_id: str | None = None,
) -> None:
    """A prediction that has been answered, and its stages. To be called only while `on`; takes about a microsecond.

    headers: lower-case names. ref: the version that answered. started_s, ended_s: on time.monotonic's clock.
    """
    given = headers.get(b"traceparent")
    parent = continued(given.decode("latin-1")) if given else None
    trace = parent.trace if parent else _new(128)
    if _sender is None or not (parent.sampled if parent else _chosen(trace)):
        return
    times = (started_s, ended_s)
    about = (deployment, ref, status, route, request_id)
    _sender.put(_Predicted(trace, parent.span if parent else 0, times, about, stages))


class _Predicted(NamedTuple):
    """A prediction as it is kept until the sender's thread makes spans of it."""

    trace: int
    parent: int
    times: tuple[float, float]
    about: tuple[str, str | None, int, str, str | None]
    stages: Stages | None

    def facts(self) -> Iterator[Facts]:
        offset = time.time_ns() - time.monotonic_ns()
        deployment, ref, status, route, request_id = self.about
        attributes = {
            "http.request.method": "POST",
            "http.route": route,
            "http.response.status_code": status,
            "enginesmith.request_id": request_id,
            "enginesmith.deployment": deployment,
            "enginesmith.model": ref,
            "enginesmith.version": ref.rpartition("@")[2] if ref else None,
        }
        stages = self.stages
        if stages is not None and stages.rows:
            attributes |= {"enginesmith.batch.rows": stages.rows, "enginesmith.batch.requests": stages.requests}
        id = _new(64)
        begin, end = (int(moment * 1e9) + offset for moment in self.times)
        error = f"HTTP {status}" if status >= 500 else None
        yield Facts(f"POST {route}", "server", self.trace, id, self.parent, begin, end, attributes, error)
        for name, first, last in _STAGES:
            since, until = getattr(stages, first, None), getattr(stages, last, None)
            if since and until and until >= since:
                begin, end = int(since * 1e9) + offset, int(until * 1e9) + offset
                yield Facts(name, "internal", self.trace, _new(64), id, begin, end, {}, None)


def _new(bits: int) -> int:
    """A random id; 0 is none."""
    return random.getrandbits(bits) or 1


def _chosen(trace: int) -> bool:
    """Whether a trace that begins here is kept: by its id, as OpenTelemetry's TraceIdRatioBased does."""
    return trace & (2**64 - 1) < int(_ratio * 2**64)
