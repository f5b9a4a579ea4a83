"""The HTTP server: uvicorn with httptools and uvloop, and what keeps clients that stall or only hold connections from
doing harm."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import weakref
from collections.abc import Sequence
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.api.hot import WHOLE
from app.api.problems import answer
from app.ending import FIRST_S, NEXT_S, close_listeners
from app.errors import BadRequest, HeadersTooLarge, Problem
from app.heads import path_of, wrong_head
from app.interpreter import settle
from app.thrift import Thrift
from app.untaken import untaken

if TYPE_CHECKING:
    from asyncio import Transport

    from fastapi import FastAPI

    from app.settings import Settings

log = logging.getLogger("enginesmith.http")
# Longer than the pools of clients and proxies keep theirs, so that it is they who close: a server that closes first
# may do so at the very moment in which a request is sent.
KEEP_ALIVE_S = 75
HEADERS_S = 20.0  # for a request's line and headers, and for the first request of a connection
HEADERS_BYTES = 64 * 1024
BODY_IDLE_S = 60.0  # without a byte of a body that is still to come
WRITE_IDLE_S = 60.0  # without the client taking a byte of an answer
_JOINED = 64 * 1024  # a body up to this size is copied behind its headers
_SPARE_FILES = 512  # descriptors kept back for engines, the store and files being uploaded
_PATROL_TICKS = 10  # uvicorn ticks ten times a second


class Connection(HttpToolsProtocol):
    """One client's connection. Marks when something last came; `Patrol` compares, so that no request sets a timer."""

    # The bound on connections, set once per process by `run`.
    most = 10_000

    quiet_since: float
    head_since: float | None  # when the request whose headers are not complete yet began
    head_bytes = 0  # of a request whose headers are not complete yet
    unsent = 0
    unsent_since = 0.0
    ending = False  # the service ends: no request after the one that is being answered
    wrong: Problem | None = None  # with the headers that are being read

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.quiet_since = self.head_since = self.loop.time()
        if len(self.connections) > self.most:
            make_room(cast("set[Connection]", self.connections), self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn's stays after a reset, and keeps all of this until it has run out

    def data_received(self, data: bytes) -> None:
        self.quiet_since = self.loop.time()
        super().data_received(data)
        if self.head_since is not None:
            self.head_bytes += len(data)
            if self.head_bytes > HEADERS_BYTES and not self.transport.is_closing():
                problem = HeadersTooLarge(f"the request's headers are longer than {HEADERS_BYTES} bytes")
                self._refuse(problem, path_of(self.url))

    def on_message_begin(self) -> None:
        self.head_since = self.quiet_since
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self.wrong = wrong_head(self.headers)
        if self.wrong is not None:
            raise ValueError("the parser stops, and send_400_response is called")
        self.head_since, self.head_bytes = None, 0
        super().on_headers_complete()
        if self.ending:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """No request after the one that is being answered; where there is none, one on its way may still come."""
        self.ending = True
        if self.is_between:
            self.loop.call_later(FIRST_S if self.cycle is None else NEXT_S, self._close_between)
        else:
            self.cycle.keep_alive = False

    def _close_between(self, looks: int = 1) -> None:
        if self.is_between and looks:  # uvloop's timers come before what has been received, where both are late
            self.loop.call_later(0.01, self._close_between, looks - 1)
        elif self.is_between:
            self.transport.close()

    def eof_received(self) -> None:
        """The client sends no more, and the connection ends. Where it is in the middle of a body, it is told so."""
        cycle = self.cycle
        if cycle is not None and cycle.more_body and not cycle.response_started:
            self._refuse(
                BadRequest("the connection ended before the body did", code="body_cut_off"), cycle.scope["path"]
            )

    def send_400_response(self, msg: str) -> None:
        problem = self.wrong or BadRequest(
            "this is no HTTP request", code="bad_http", hint="send HTTP/1.1, and a Content-Length that is the body's"
        )
        self._refuse(problem, path_of(getattr(self, "url", b"")))

    def _refuse(self, problem: Problem, path: str) -> None:
        """Answers without the app, and ends the connection."""
        response = answer(problem, path)
        lines = [STATUS_LINE[response.status_code]]
        for name, value in (*response.raw_headers, (b"x-request-id", uuid4().hex.encode()), (b"connection", b"close")):
            lines += (name, b": ", value, b"\r\n")
        self.transport.write(b"".join((*lines, b"\r\n", response.body)))
        self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # Weak, because the cycle refers to it: what refers to itself waits for the garbage collector. That was 6 MB of
        # requests long answered.
        cast(Any, cycle.scope)["extensions"] = {WHOLE: partial(send_whole, weakref.ref(cycle))}
        super()._start_asgi_task(cycle, app)

    @property
    def is_between(self) -> bool:
        """Whether no request is being answered. An answer that is written may still wait for its client to take it."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def idle(self) -> bool:
        """Whether nothing is being answered, and every answer has been taken."""
        return self.is_between and not self.transport.get_write_buffer_size()

    def stalls(self, now: float) -> str | None:
        """Why this connection should be ended, if it should."""
        waiting = self.transport.get_write_buffer_size()
        if waiting != self.unsent or not waiting:
            self.unsent, self.unsent_since = waiting, now
        elif now - self.unsent_since > WRITE_IDLE_S:
            return "it does not take its answer"
        if self.idle:
            # Keep-alive between requests is uvicorn's own timer; this is a request that never becomes one.
            waited = self.head_since is not None and now - self.head_since > HEADERS_S
            return "its request did not come" if waited else None
        body_comes = self.cycle is not None and self.cycle.more_body and not self.flow.read_paused
        return "its body did not come" if body_comes and now - self.quiet_since > BODY_IDLE_S else None


async def send_whole(
    request: weakref.ref[RequestResponseCycle], status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    """What `cycle.send` does for the start and the only body of an answer, but in one write: the second one costs a
    system call here and at the client. headers: trusted, with Content-Length; the request's body has been read."""
    cycle = request()
    if cycle is None:  # nobody runs it any more
        return
    if cycle.flow.write_paused and not cycle.disconnected:
        await cycle.flow.drain()
    if cycle.disconnected:
        return
    lines = [STATUS_LINE[status]]
    for name, value in (*cycle.default_headers, *headers):
        lines += (name, b": ", value, b"\r\n")
    lines.append(b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")
    cycle.response_started = True
    cycle.waiting_for_100_continue = False
    if len(body) <= _JOINED:
        lines.append(body)
        cycle.transport.write(b"".join(lines))
    else:
        cycle.transport.writelines((b"".join(lines), body))
        untaken.add(cycle.transport, len(body))
    cycle.response_complete = True
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()


def make_room(connections: set[Connection], newest: Connection) -> None:
    """Too many connections: ends the sixteenth that has been idle the longest; where none is idle, the newest one."""
    idle = sorted((c for c in connections if c.idle and c is not newest), key=lambda c: c.quiet_since)
    log.warning("%d connections are open, and at most %d are kept", len(connections), newest.most)
    for connection in idle[: max(1, newest.most // 16)] or [newest]:
        connection.transport.abort()


class Server(uvicorn.Server):
    """uvicorn's, which also walks its connections once a second."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app
        self._thrift = Thrift(lambda work: asyncio.get_running_loop().run_in_executor(None, work))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._app.state.stopping = True  # whoever waits for a job's end or its events is answered now
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        settle()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Whoever has connected before it is answered; see Connection.shutdown for who says nothing yet."""

        def close() -> None:
            for server in self.servers:
                server.close()
            for listener in sockets or ():
                listener.close()

        waiting = close_listeners([s.fileno() for server in self.servers for s in server.sockets], close)
        for connection in waiting:
            await asyncio.get_running_loop().connect_accepted_socket(self._last, connection)
        await super().shutdown(sockets)

    def _last(self) -> Connection:
        made = Connection(self.config, self.server_state, self.lifespan.state)
        made.ending = True
        return made

    async def on_tick(self, counter: int) -> bool:
        if counter % _PATROL_TICKS == 0:
            now = asyncio.get_running_loop().time()
            patrol(cast("set[Connection]", self.server_state.connections), now)
            hot = getattr(self._app, "hot", None)
            self._thrift.look((0 if hot is None else hot.held) + untaken.bytes, now)
        return await super().on_tick(counter)


def patrol(connections: set[Connection], now: float) -> None:
    """Ends the connections that stall. now: on the event loop's clock."""
    for connection in list(connections):
        if (why := connection.stalls(now)) is not None:
            log.info("a connection is ended: %s", why, extra={"client": connection.client})
            connection.transport.abort()
    untaken.look()


def run(app: FastAPI, settings: Settings, fds: Sequence[int] = ()) -> None:
    """Serves until SIGTERM or SIGINT. fds: open listening sockets to serve on, instead of the settings' address."""
    Connection.most = max(64, raise_file_limit() - _SPARE_FILES)
    server = Server(config(app, settings), app)
    # uvicorn's own `fd` would take the socket for a unix one, and so leave Nagle's delay on.
    server.run(sockets=[socket.socket(fileno=fd) for fd in fds] or None)


def config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "http": Connection,
        "loop": "uvloop",
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,  # nothing here depends on the client's address, and believing a header costs time
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": 15,
    }
    return uvicorn.Config(app, **options)


def raise_file_limit() -> int:
    """Lets this process have as many open files as the system allows it; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else max(soft, 1 << 20)
    with contextlib.suppress(ValueError, OSError):  # a container may forbid it
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
