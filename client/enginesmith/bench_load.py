"""The load that `bench` makes, light enough that it is not the generator that is measured.

httpx takes about half a millisecond of CPU per request; this takes some twenty to forty microseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

from .bench_clock import ticking
from .bench_wire import NO_LENGTH, Connection, Target
from .errors import EnginesmithError

PATIENCE_S = 30.0  # for answers that are outstanding when a point ends
PAUSE_S = 0.01  # before a refused or broken request is followed by another
MOST_CONNECTIONS = 1024


class BadAnswer(EnginesmithError):
    """The service answers with what this reader does not take."""


@dataclass
class Sample:
    """What was seen at one point. Latencies in seconds, of requests that were answered with 200."""

    seconds: float = 0.0
    latencies: array[float] = field(default_factory=lambda: array("d"))
    late: array[float] = field(default_factory=lambda: array("d"))  # open loop: sent, after it was due
    statuses: Counter[str] = field(default_factory=Counter)  # of what was not answered with 200
    cpu_s: float = 0.0  # of this process
    wall_s: float = 0.0

    @property
    def cpu_share(self) -> float:
        """Of one core, the share that the generator itself took."""
        return self.cpu_s / self.wall_s if self.wall_s else 0.0


class _Load:
    """What the two kinds of load share: the clock, the connections, the counts."""

    def __init__(self, target: Target, warm_s: float, seconds: float) -> None:
        self.target, self.sample = target, Sample(seconds=seconds)
        self.loop = asyncio.get_running_loop()
        self.payloads: Iterator[bytes] = cycle(target.payloads)
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.ended = asyncio.Event()
        self.warm_s = warm_s
        self.begin = self.end = 0.0

    async def connect(self, done: Callable[[Connection, int | str], None]) -> Connection:
        target = self.target
        _, connection = await self.loop.create_connection(
            lambda: Connection(done), target.host, target.port, ssl=target.tls
        )
        self.connections.add(connection)
        return connection

    def start_clock(self) -> None:
        self.begin = time.perf_counter() + self.warm_s
        self.end = self.begin + self.sample.seconds

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def note(self, status: int | str, latency: float) -> None:
        if status == 200:
            self.sample.latencies.append(latency)
        else:
            self.sample.statuses[str(status)] += 1

    def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        for connection in self.connections:
            connection.done = lambda *_: None
            connection.close()


async def closed_loop(target: Target, concurrency: int, seconds: float, warm_s: float = 0.0) -> Sample:
    """`concurrency` clients, each of which sends its next request when the last one is answered. Raises OSError."""
    load = _Load(target, warm_s, seconds)
    going = concurrency

    def finish() -> None:
        nonlocal going
        going -= 1
        if not going:
            load.ended.set()

    def send(connection: Connection) -> None:
        now = time.perf_counter()
        if now >= load.end:
            finish()
        elif connection.transport is None:
            load.connections.discard(connection)
            load.later(replace())
        else:
            connection.send(next(load.payloads), now)

    async def replace() -> None:
        try:
            connection = await load.connect(done)
        except OSError:
            load.sample.statuses["cannot connect"] += 1
            await asyncio.sleep(PAUSE_S * 10)
            if time.perf_counter() < load.end:
                load.later(replace())
            else:
                finish()
        else:
            send(connection)

    def done(connection: Connection, status: int | str) -> None:
        now = time.perf_counter()
        if load.begin <= now <= load.end or status != 200:
            load.note(status, now - connection.due)
        elif now > load.end and not load.sample.latencies:  # slower than the point is long: one answer at least
            load.note(status, now - connection.due)
            load.sample.seconds = now - load.begin
        if status == 200:
            send(connection)
        else:
            load.loop.call_later(PAUSE_S, send, connection)

    with contextlib.closing(load):
        opened = [await load.connect(done) for _ in range(concurrency)]
        with _measured(load.sample):
            load.start_clock()
            for connection in opened:
                send(connection)
            await _until(load, concurrency)
        return load.sample


async def open_loop(target: Target, rate: float, seconds: float, warm_s: float = 0.0) -> Sample:
    """Requests fall due at a constant rate, whatever is outstanding; a latency counts from the moment it was due.

    So an answer that is held up makes those behind it late too, as it does for people (no coordinated omission).
    Raises OSError.
    """
    load = _Load(target, warm_s, seconds)
    idle: deque[Connection] = deque()
    waiting: deque[float] = deque()  # due, and no connection is free
    unmeasured = round(rate * warm_s)
    total = unmeasured + max(1, round(rate * seconds))
    due_next = answered = opening = 0
    start = 0.0

    def done(connection: Connection, status: int | str) -> None:
        nonlocal answered
        answered += 1
        now = time.perf_counter()
        if connection.due >= load.begin:
            load.note(status, now - connection.due)
            load.sample.seconds = max(load.sample.seconds, now - load.begin)
        if connection.transport is None:
            load.connections.discard(connection)
        elif waiting:
            connection.send(next(load.payloads), waiting.popleft())
        else:
            idle.append(connection)
        if waiting:
            grow()
        if answered >= total:
            load.ended.set()

    def grow() -> None:
        nonlocal opening
        if len(load.connections) + opening < MOST_CONNECTIONS:
            opening += 1
            load.later(add())

    async def add() -> None:
        nonlocal opening, answered
        try:
            connection = await load.connect(done)
        except OSError:
            if waiting:  # one request is lost with it
                waiting.popleft()
                answered += 1
                load.sample.statuses["cannot connect"] += 1
                if answered >= total:
                    load.ended.set()
            return
        finally:
            opening -= 1
        if waiting:
            connection.send(next(load.payloads), waiting.popleft())
        else:
            idle.append(connection)

    def tick() -> None:
        nonlocal due_next
        now = time.perf_counter()
        while due_next < total and (moment := start + due_next / rate) <= now:
            due_next += 1
            if moment >= load.begin:
                load.sample.late.append(now - moment)
            while idle:
                connection = idle.pop()
                if connection.transport is not None:
                    connection.send(next(load.payloads), moment)
                    break
                load.connections.discard(connection)
            else:
                waiting.append(moment)
                grow()

    with contextlib.closing(load):
        first = min(256, 4 + int(rate * 0.05))
        idle.extend([await load.connect(done) for _ in range(first)])
        due = lambda: start + due_next / rate if due_next < total else None  # noqa: E731
        with _measured(load.sample):
            load.start_clock()
            start = load.begin - warm_s
            load.begin = start + unmeasured / rate
            with ticking(load.loop, tick, due):
                await _until(load, lambda: total - answered)
        return load.sample


async def _until(load: _Load, outstanding: int | Callable[[], int]) -> None:
    """Waits for the end of the point and for what is outstanding then; counts what does not come."""
    try:
        async with asyncio.timeout(load.end - time.perf_counter() + PATIENCE_S):
            await load.ended.wait()
    except TimeoutError:
        lost = outstanding() if callable(outstanding) else sum(c.busy for c in load.connections)
        load.sample.statuses["no answer"] += lost
    if load.sample.statuses[NO_LENGTH]:
        raise BadAnswer("an answer has no Content-Length: a proxy in between? bench asks the service itself")
    load.sample.statuses += Counter()  # drops what is zero


@contextlib.contextmanager
def _measured(sample: Sample) -> Iterator[None]:
    """Counts this process's own time; the garbage collector does not run meanwhile, for its pauses would be counted."""
    gc.collect()
    gc.disable()
    cpu, wall = time.process_time(), time.perf_counter()
    try:
        yield
    finally:
        sample.cpu_s, sample.wall_s = time.process_time() - cpu, time.perf_counter() - wall
        gc.enable()
