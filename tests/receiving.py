"""A receiver of webhooks: a real HTTP server on loopback that answers as it is told to."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Call:
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass
class Receiver:
    """calls: so far. answers: (status, headers) of the next ones, then 204. held: while it is clear, nobody is
    answered."""

    port: int
    calls: list[Call] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)
    endless: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?of=mine"


@contextmanager
def receiver(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.calls.append(Call(self.path, dict(self.headers), body))
            status, headers = received.answers.pop(0) if received.answers else (204, {})
            received.held.wait(60)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                while received.endless:
                    self.wfile.write(b"x" * 65536)
            except OSError:
                received.endless = False

        do_GET = do_POST  # noqa: N815  a redirect that was followed would come as one

        def log_message(self, *_: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    received = Receiver(server.server_address[1])
    received.held.set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield received
    finally:
        received.held.set()
        server.shutdown()
        server.server_close()
        thread.join()
