"""Open loop: requests leave on a schedule, whether or not the last ones came back; latency counts from the schedule.

One thread, plain sockets, and select: its timeout is exact to microseconds; epoll's, and so asyncio's, to milliseconds.
"""

from __future__ import annotations

import select
import socket
import time
from typing import NamedTuple

from benchmarks.peers import Ask
from benchmarks.rig.figures import percentile


class Told(NamedTuple):
    """Milliseconds. late: how long after its time a request left, which is the generator's own error."""

    requests: int
    errors: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    late_p99_ms: float


class _Connection:
    """Keep-alive. One request at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self._answer = b""
        self._whole = -1

    def send(self, request: bytes, due: float) -> None:
        self.due, self._answer, self._whole = due, b"", -1
        self.socket.sendall(request)

    def receive(self) -> bool | None:
        """Whether the answer was a 200; None while it is not complete. Raises ConnectionError."""
        chunk = self.socket.recv(65536)
        if not chunk:
            raise ConnectionError("closed before the answer was complete")
        self._answer += chunk
        if self._whole < 0:
            end = self._answer.find(b"\r\n\r\n")
            if end < 0:
                return None
            self._whole = end + 4 + content_length(self._answer[:end])
        return self._answer[9:12] == b"200" if len(self._answer) >= self._whole else None


def content_length(head: bytes) -> int:
    """Of an answer's head. Raises ValueError without one: chunked answers are not read."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    raise ValueError(f"an answer without Content-Length: {head[:200]!r}")


def request_bytes(port: int, ask: Ask) -> bytes:
    headers = {"Host": f"127.0.0.1:{port}", **ask.headers, "Content-Length": str(len(ask.body))}
    head = f"POST {ask.path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    return head.encode() + b"\r\n" + ask.body


def run(port: int, ask: Ask, rate: float, seconds: float, patience_s: float = 10.0) -> Told:
    """`rate` requests a second for so long, then up to `patience_s` for the last answers."""
    request = request_bytes(port, ask)
    idle: list[_Connection] = []
    busy: dict[socket.socket, _Connection] = {}
    taken: list[float] = []
    late: list[float] = []
    errors = sent = 0
    total = max(1, round(rate * seconds))
    clock = time.perf_counter
    began = clock() + 0.01
    until = began + total / rate + patience_s
    while (sent < total or busy) and clock() < until:
        wait = began + sent / rate - clock() if sent < total else 0.2
        if wait <= 0:
            connection = idle.pop() if idle else _Connection(port)
            due = began + sent / rate
            late.append(clock() - due)
            busy[connection.socket] = connection
            sent += 1
            try:
                connection.send(request, due)
            except OSError:
                errors += 1
                busy.pop(connection.socket).socket.close()
            wait = 0.0
        for ready in select.select(list(busy), [], [], max(0.0, wait))[0]:
            connection = busy[ready]
            try:
                fine = connection.receive()
            except OSError:
                errors += 1
                busy.pop(ready).socket.close()
                continue
            if fine is None:
                continue
            now = clock()
            del busy[ready]
            idle.append(connection)
            if fine:
                taken.append(now - connection.due)
            else:
                errors += 1
    errors += len(busy)
    for connection in (*idle, *busy.values()):
        connection.socket.close()
    if not taken:
        return Told(sent, errors, float("inf"), float("inf"), float("inf"), 1e3 * percentile(late, 99))
    p50, p95, p99 = (1e3 * percentile(taken, q) for q in (50, 95, 99))
    return Told(sent, errors, p50, p95, p99, 1e3 * percentile(late, 99))
