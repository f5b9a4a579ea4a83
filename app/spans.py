"""Sends spans to an OTLP endpoint over HTTP, from a thread of its own. The only file that knows opentelemetry's SDK."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from app.errors import Conflict
from app.settings import Settings

log = logging.getLogger("enginesmith.traces")
QUEUE_MAX = 8192
BATCH_MAX = 512
PERIOD_S = 0.25
TIMEOUT_S = 5.0  # for one batch, tries again included
_PAUSES_S = (1.0, 5.0, 15.0, 30.0)


class Facts(NamedTuple):
    """A span that is over. Ids as integers, parent 0: none; times in nanoseconds since 1970."""

    name: str
    kind: str
    trace: int
    id: int
    parent: int
    started: int
    ended: int
    attributes: dict[str, Any]
    error: str | None

    def facts(self) -> Iterator[Facts]:
        yield self


class Told(Protocol):
    """What spans can be made of."""

    def facts(self) -> Iterator[Facts]: ...


def check(settings: Settings) -> None:
    """Raises Conflict where an endpoint is set and traces cannot be sent there."""
    endpoint = settings.otlp_endpoint
    if not endpoint:
        return
    try:
        parts = urlsplit(endpoint)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good:
        raise Conflict(
            f"ENGINESMITH_OTLP_ENDPOINT is no URL: {endpoint[:200]!r}",
            code="bad_otlp_endpoint",
            hint="the address of a collector that takes OTLP over HTTP, such as http://localhost:4318",
        )
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as error:
        raise Conflict(
            f"an OTLP endpoint is set, and the packages that send traces are not installed: {error}",
            code="no_opentelemetry",
            hint="pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http, or unset "
            "ENGINESMITH_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_ENDPOINT",
        ) from error


class Sender:
    """A bounded queue and the thread that empties it. Spans that do not fit are dropped, and counted.

    Not the SDK's BatchSpanProcessor: that wakes a thread from the caller's, logs every failure, and waits for
    up to 30 s in the end.
    """

    def __init__(self, endpoint: str, service: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource

        # Its complaints come with every batch; one of ours comes with every change.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        url = endpoint.rstrip("/")
        self.url = url if url.endswith("/v1/traces") else f"{url}/v1/traces"
        self.dropped = 0
        self._exporter = OTLPSpanExporter(endpoint=self.url, timeout=TIMEOUT_S)
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win.
        named = Resource({"service.name": service, "service.namespace": "enginesmith"})
        self._resource = Resource.create().merge(named).merge(OTELResourceDetector().detect())
        self._queue: deque[Told] = deque()
        self._ending = threading.Event()
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def put(self, told: Told) -> None:
        """Never waits."""
        if len(self._queue) < QUEUE_MAX:
            self._queue.append(told)
        else:
            self.dropped += 1

    def stop(self, patience_s: float) -> None:
        """Sends what is left, and gives up after `patience_s`, or at once where the endpoint is known not to answer."""
        self._ending.set()
        self._thread.join(0 if self._failures else patience_s)
        ends = threading.Thread(target=self._exporter.shutdown, name="traces-end", daemon=True)
        ends.start()  # closing a connection may wait for the thread that uses it
        ends.join(0.2)

    def _run(self) -> None:
        while not self._ending.wait(self._pause()):
            self._send_all()
        self._send_all()

    def _pause(self) -> float:
        return _PAUSES_S[min(self._failures, len(_PAUSES_S)) - 1] if self._failures else PERIOD_S

    def _send_all(self) -> None:
        while self._queue:
            taken = [self._queue.popleft() for _ in range(min(BATCH_MAX, len(self._queue)))]
            try:
                self._send([facts for told in taken for facts in told.facts()])
            except Exception as error:
                self._fail(f"{type(error).__name__}: {error}")
            if self._failures:
                return

    def _send(self, spans: list[Facts]) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        if self._exporter.export([self._encoded(span) for span in spans]) is SpanExportResult.SUCCESS:
            if self._failures:
                log.warning("traces reach %s again; %d were dropped meanwhile", self.url, self.dropped)
            self._failures, self.dropped = 0, 0
        else:
            self.dropped += len(spans)
            self._fail("it does not answer, or not with 200")

    def _fail(self, why: str) -> None:
        if not self._failures and not self._ending.is_set():
            log.warning("traces do not reach %s: %s. It is tried again; nothing waits for it", self.url, why)
        self._failures += 1

    def _encoded(self, span: Facts) -> Any:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        sampled = TraceFlags(TraceFlags.SAMPLED)
        return ReadableSpan(
            name=span.name,
            context=SpanContext(span.trace, span.id, is_remote=False, trace_flags=sampled),
            parent=SpanContext(span.trace, span.parent, is_remote=True, trace_flags=sampled) if span.parent else None,
            resource=self._resource,
            attributes={k: v for k, v in span.attributes.items() if v is not None},
            kind=SpanKind[span.kind.upper()],
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
            start_time=span.started,
            end_time=max(span.started, span.ended),
            instrumentation_scope=InstrumentationScope("enginesmith"),
        )
