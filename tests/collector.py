"""A little OTLP collector: takes traces over HTTP in a thread, and keeps their spans."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

KINDS = {Span.SPAN_KIND_SERVER: "server", Span.SPAN_KIND_INTERNAL: "internal", Span.SPAN_KIND_CONSUMER: "consumer"}


class Received:
    """A span with its attributes as a dict. service: that of its resource."""

    def __init__(self, span: Span, service: str) -> None:
        self.name, self.kind, self.service = span.name, KINDS[span.kind], service
        self.trace, self.id, self.parent = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
        self.began, self.ended = span.start_time_unix_nano, span.end_time_unix_nano
        self.attributes: dict[str, Any] = {
            a.key: getattr(a.value, a.value.WhichOneof("value") or "string_value") for a in span.attributes
        }
        self.error = span.status.message if span.status.code == 2 else None


class Collector:
    """`with Collector() as collector`. held: while it is cleared, requests are taken and not answered."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.spans: list[Received] = []
        self.requests = 0
        self.held = threading.Event()
        self.held.set()
        self._changed = threading.Condition()
        outer = self

        class Taker(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces", self.path
                outer._take(body)
                outer.held.wait(120)
                self.send_response(outer.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Taker)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.held.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._changed:
            self.requests += 1
            for resource in request.resource_spans:
                named = {a.key: a.value.string_value for a in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self.spans += [Received(span, named["service.name"]) for span in scope.spans]
            self._changed.notify_all()

    def wait_for(self, enough: Callable[[list[Received]], Any], seconds: float = 60) -> list[Received]:
        """Waits until `enough(spans)` is true; fails after `seconds`."""
        until = time.monotonic() + seconds
        with self._changed:
            while not enough(self.spans):
                assert self._changed.wait(until - time.monotonic()), [span.name for span in self.spans]
            return list(self.spans)
