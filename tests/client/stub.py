"""A tiny real HTTP server that answers as a test scripts it, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Asked:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """drop: close the connection instead of finishing the body, `after` that many bytes of it."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None

    @property
    def bytes(self) -> bytes:
        if self.body is None:
            return b""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


Scripted = Answer | Callable[[Asked], Answer]


class Stub:
    """`stub.on("GET", "/x", first, second)`: the last answer is given again and again."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._answers: dict[tuple[str, str], deque[Scripted]] = defaultdict(deque)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def on(self, method: str, path: str, *answers: Scripted) -> None:
        self._answers[method, path] = deque(answers)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self._body()
                path, _, query = self.path.partition("?")
                asked = Asked(self.command, path, query, dict(self.headers), body)
                stub.asked.append(asked)
                script = stub._answers[self.command, path]
                given = script.popleft() if len(script) > 1 else script[0] if script else NOT_FOUND
                answer = given if isinstance(given, Answer) else given(asked)
                content = answer.bytes
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if answer.drop_after is not None:
                    content, self.close_connection = content[: answer.drop_after], True
                self.wfile.write(content)

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") == "chunked":
                    found = b""
                    while size := int(self.rfile.readline(), 16):
                        found += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                    return found
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


NOT_FOUND = Answer(
    404, {"status": 404, "code": "not_found", "detail": "the stub has no such page", "hint": "script it"}
)


def sse(*events: tuple[str, str, dict[str, Any]], **more: Any) -> Answer:
    """(id, type, data) as an event stream."""
    text = "".join(f"id: {i}\nevent: {kind}\ndata: {json.dumps(data)}\n\n" for i, kind, data in events)
    return Answer(200, (": hello\n\n" + text).encode(), {"Content-Type": "text/event-stream"}, **more)


def job(status: str = "queued", **more: Any) -> dict[str, Any]:
    found = {
        "id": "j1",
        "kind": "train",
        "spec": {"kind": "train"},
        "model": "net@1",
        "dataset": None,
        "status": status,
    }
    return found | {"phase": status, "created_at": "2026-01-01T00:00:00Z", "result": None, "error": None} | more


DONE = job("succeeded", result={"model": "net@2", "verdict": None, "report": {}})
LOST = job(
    "failed",
    error={
        "status": 422,
        "code": "bad_dataset",
        "detail": "x holds NaN",
        "hint": "clean it",
        "errors": [{"loc": ["x", 3], "msg": "NaN"}],
    },
)


def answers(stub: Stub, kind: str, report: dict[str, Any], model: str | None = "net@2", **more: Any) -> None:
    """The next job of any kind ends at once with this."""
    result = {"model": model, "verdict": more.pop("verdict", None), "report": report}
    done = job("succeeded", kind=kind, result=result, **more)
    stub.on("POST", "/v1/jobs", Answer(202, job(kind=kind, **more)))
    stub.on("GET", "/v1/jobs/j1/events", sse(("1-0", "state", {"status": "succeeded"})))
    stub.on("GET", "/v1/jobs/j1", Answer(200, done))
