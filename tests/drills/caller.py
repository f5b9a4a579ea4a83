"""A client process of its own: closed or open loop over raw sockets; an order as JSON in, what it got as JSON out.

python caller.py < order.json. Closed: every connection asks again as soon as it is answered. Open: requests fall due at
a rate, whether or not earlier ones came back.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import signal
import sys
import time
from collections import Counter, deque
from typing import Any

import orjson
import uvloop

_TICK_S = 0.004  # a client that wakes too often takes the processor from the server beside it
_DRAIN_S = 240.0  # for answers that are still to come: no statement about speed


class Line(asyncio.Protocol):
    """A connection; one request at a time."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.transport: Any = None
        self.sent_at = 0.0
        self.is_busy = False
        self.held = b""
        self.whole = -1

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, request: bytes) -> None:
        self.is_busy, self.held, self.whole, self.sent_at = True, b"", -1, time.monotonic()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.held += data
        if self.whole < 0:
            end = self.held.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.held[:end].lower()
            at = head.index(b"content-length:") + 15
            self.whole = end + 4 + int(head[at : (head + b"\r\n").index(b"\r\n", at)])
        if len(self.held) >= self.whole:
            self.is_busy = False
            end = self.held.index(b"\r\n\r\n")
            self.caller.answered(self, self.held[:end].lower(), self.held[end + 4 : self.whole])

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.caller.lost(self)


class Caller:
    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.host, self.port = order["host"], order["port"]
        self.requests = [base64.b64decode(r) for r in order["requests"]]
        self.check = getattr(self, f"_{order['check']}") if order.get("check") else None
        self.is_closed = order["mode"] == "closed"
        self.statuses: Counter[int] = Counter()
        self.told: Counter[str] = Counter()  # what answers said: versions, refusals
        self.wrong: list[str] = []
        self.good: list[float] = []  # seconds that a 200 took
        self.refused: list[float] = []
        self.by_second: Counter[int] = Counter()
        self.resets = self.unsent = self.without_retry = self.sent = self.opening = self.open_most = 0
        self.lines: set[Line] = set()
        self.idle: deque[Line] = deque()
        self.began = self.until = 0.0

    def _factor(self, body: bytes) -> str | None:
        """Every row of an answer to ones is the number of the version that says it answered."""
        answer = orjson.loads(body)
        if "outputs" in answer and "model_name" in answer:
            number, values = answer["model_version"], answer["outputs"][0]["data"]
        else:
            number = answer["model"].rpartition("@")[2]
            values = [value for row in answer["outputs"]["logits"] for value in row]
        self.told[number] += 1
        return None if {int(number)} == set(values) else f"{number}: {values}"

    def answered(self, line: Line, head: bytes, body: bytes) -> None:
        now = time.monotonic()
        status = int(head[9:12])
        self.statuses[status] += 1
        if status == 200:
            self.good.append(now - line.sent_at)
            self.by_second[int(now - self.began)] += 1
            if self.check is not None and (found := self.check(body)) and len(self.wrong) < 10:
                self.wrong.append(found)
        else:
            if status == 429:
                self.refused.append(now - line.sent_at)
                self.without_retry += b"\r\nretry-after: " not in head
            if len(self.told) < 50:
                self.told[body[:300].decode("utf-8", "replace")] += 1
        if b"\r\nconnection: close" in head:
            line.transport.close()
            return
        if self.is_closed and now < self.until:
            self.send(line)
        else:
            self.idle.append(line)

    def lost(self, line: Line) -> None:
        self.lines.discard(line)
        if line.is_busy:
            self.resets += 1
        with contextlib.suppress(ValueError):
            self.idle.remove(line)
        if self.is_closed and time.monotonic() < self.until:
            self.open()

    def send(self, line: Line) -> None:
        line.ask(self.requests[self.sent % len(self.requests)])
        self.sent += 1

    def open(self) -> None:
        """A new connection, which sends at once."""
        self.opening += 1
        task = asyncio.get_running_loop().create_task(self._open())
        task.add_done_callback(lambda done: done.result())

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, line = await loop.create_connection(lambda: Line(self), self.host, self.port)
        except OSError as error:
            self.resets += 1
            self.told[repr(error)] += 1
            await asyncio.sleep(0.05)
            if self.is_closed and time.monotonic() < self.until:
                self.open()
            return
        finally:
            self.opening -= 1
        self.lines.add(line)
        self.open_most = max(self.open_most, len(self.lines))
        self.send(line)

    async def run(self) -> dict[str, Any]:
        order = self.order
        self.began = time.monotonic()
        self.until = self.began + order["seconds"]
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.stop)
        if self.is_closed:
            for _ in range(order["connections"]):
                self.open()
            while time.monotonic() < self.until:
                await asyncio.sleep(0.02)
        else:
            await self._keep_rate(order["rate"], order["most"])
        ends = time.monotonic() + _DRAIN_S
        while (self.opening or any(line.is_busy for line in self.lines)) and time.monotonic() < ends:
            await asyncio.sleep(0.01)
        unanswered = sum(line.is_busy for line in self.lines)
        for line in list(self.lines):
            line.is_busy = False
            line.transport.close()
        seconds = self.until - self.began
        in_time = sum(n for second, n in self.by_second.items() if second < seconds)
        return {
            "sent": self.sent,
            "statuses": dict(self.statuses),
            "told": dict(self.told),
            "wrong": self.wrong,
            "resets": self.resets,
            "unanswered": unanswered,
            "unsent": self.unsent,
            "without_retry": self.without_retry,
            "good_per_s": in_time / seconds,
            "sent_per_s": self.sent / seconds,
            "open_most": self.open_most,
            "good_s": _percentiles(self.good),
            "refused_s": _percentiles(self.refused),
            "drained_s": time.monotonic() - self.until,
        }

    def stop(self) -> None:
        self.until = time.monotonic()

    async def _keep_rate(self, rate: float, most: int) -> None:
        due = 0
        while (now := time.monotonic()) < self.until:
            wanted = int((now - self.began) * rate)
            while due < wanted:
                due += 1
                if self.idle:
                    self.send(self.idle.popleft())
                elif len(self.lines) + self.opening < most:
                    self.open()
                else:
                    self.unsent += 1
            await asyncio.sleep(_TICK_S)


def _percentiles(taken: list[float]) -> list[float]:
    """p50, p99 and the longest."""
    ranked = sorted(taken) or [0.0]
    return [round(ranked[min(len(ranked) - 1, int(len(ranked) * q))], 4) for q in (0.5, 0.99, 1.0)]


if __name__ == "__main__":
    given = json.load(sys.stdin)
    found = uvloop.run(Caller(given).run())
    json.dump(found, sys.stdout)
