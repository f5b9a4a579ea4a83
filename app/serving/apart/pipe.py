"""One end of the socket between a front and the host: frames, sent once per turn of the event loop, and calls."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

from app.errors import Internal, Problem, Unavailable, from_body
from app.serving.apart import frames
from app.serving.apart.frames import Frame, Kind

log = logging.getLogger("enginesmith.serving")
_JOINED = 4096  # pieces up to this size are joined before they are written


class Pipe(asyncio.Protocol):
    """Subclasses say what to do with INFER, ANSWER, TABLE, NOTE and CANCEL in `take`. calls: what the other end may
    ask for by name; each takes and gives JSON."""

    def __init__(self) -> None:
        self.calls: dict[str, Callable[..., Awaitable[Any]]] = {}
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self._reader = frames.Reader()
        self._out: list[Any] = []
        self._ids = itertools.count(1)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def take(self, frame: Frame) -> None:
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass

    def connection_lost(self, error: Exception | None) -> None:
        """Whoever waits for the other end hears of it at once."""
        self._transport = None
        waiting, self.waiting = list(self.waiting.values()), {}
        for answer in waiting:
            if not answer.done():
                answer.set_exception(gone())
        for task in list(self.tasks):
            task.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                kind = frame.kind
                if kind == Kind.CALL:
                    self.spawn(self._serve(frame))
                elif kind == Kind.RESULT:
                    if answer := self.settle(frame.id):
                        answer.set_result(frames.read_plain(frame))
                elif kind == Kind.FAIL:
                    if answer := self.settle(frame.id):
                        answer.set_exception(read_failure(frame))
                else:
                    self.take(frame)
        except Exception:
            # One end has lost its place in the stream: nothing that follows could be believed.
            log.exception("the socket between front and engines is given up")
            self.close()

    def settle(self, id: int) -> asyncio.Future[Any] | None:
        """The future that waits for this id, if it still does."""
        answer = self.waiting.pop(id, None)
        return answer if answer is not None and not answer.done() else None

    def expect(self) -> tuple[int, asyncio.Future[Any]]:
        """An id, and the future of what comes back under it. Raises Unavailable when the other end is gone."""
        if not self.is_open:
            raise gone()
        id = next(self._ids) & 0xFFFFFFFF
        self.waiting[id] = answer = self._loop.create_future()
        return id, answer

    async def call(self, name: str, *arguments: Any, patience_s: float = 60.0) -> Any:
        """Has the other end do something. Raises what it raises; Unavailable when it is gone or takes too long."""
        id, answer = self.expect()
        self.send(frames.plain(Kind.CALL, id, [name, *arguments]))
        try:
            async with asyncio.timeout(patience_s):
                return await answer
        except TimeoutError:
            raise Unavailable(f"the other process did not answer {name!r} within {patience_s:g} s") from None
        finally:
            self.waiting.pop(id, None)

    def send(self, pieces: list[Any]) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += pieces

    def spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        pieces, self._out = self._out, []
        if self._transport is None:
            return
        small: list[Any] = []
        for piece in pieces:
            if len(piece) <= _JOINED:
                small.append(piece)
                continue
            self._transport.write(b"".join(small))
            self._transport.write(piece)
            small = []
        self._transport.write(b"".join(small))

    async def _serve(self, frame: Frame) -> None:
        name, *arguments = frames.read_plain(frame)
        try:
            result = await self.calls[name](*arguments)
            answer = frames.plain(Kind.RESULT, frame.id, result)
        except Exception as error:
            answer = failure(frame.id, error)
        self.send(answer)


def failure(id: int, error: Exception) -> list[Any]:
    """A FAIL frame. What nobody foresaw is logged here, where it happened."""
    if not isinstance(error, Problem):
        log.error("an error that nobody foresaw", exc_info=error)
        error = Internal("something went wrong inside the service")
    return frames.plain(Kind.FAIL, id, [error.body(), error.headers])


def read_failure(frame: Frame) -> Problem:
    body, headers = frames.read_plain(frame)
    problem = from_body(body)
    problem.headers = headers
    return problem


def gone() -> Unavailable:
    return Unavailable(
        "the process of the engines is not there",
        code="engines_gone",
        hint="it is being started again: try again in a moment",
        headers={"Retry-After": "1"},
    )
