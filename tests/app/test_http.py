"""Clients that stall: each is ended, and those that work are left alone. Real sockets; the clock is the test's."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from fastapi import FastAPI, Request, Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app import http
from app.api.hot import WHOLE
from app.http import BODY_IDLE_S, HEADERS_S, WRITE_IDLE_S, Connection, Server, patrol
from app.settings import Settings

LARGE = 32_000_000  # more than the buffers of a socket pair hold
Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Open = Callable[[bytes], Awaitable[Opened]]


class Whole(FastAPI):
    """Answers /whole and /whole/large before any route, as predictions are."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/whole"):
            body = b"x" * LARGE if scope["path"] == "/whole/large" else b"whole"
            await scope["extensions"][WHOLE](200, [(b"content-length", b"%d" % len(body))], body)
        else:
            await super().__call__(scope, receive, send)


class Listening(Server):
    """A server, where it listens, and what opens /gate."""

    address: tuple[str, int]
    gate: asyncio.Event


@pytest.fixture
async def server() -> AsyncIterator[Listening]:
    app = Whole()
    app.state.stopping = False
    app.state.gate = asyncio.Event()

    @app.get("/large")
    async def large() -> Response:
        return Response(b"x" * LARGE)

    @app.post("/length")
    async def length(request: Request) -> Response:
        return Response(str(len(await request.body())))

    @app.get("/gate")
    async def gate() -> Response:
        await app.state.gate.wait()
        return Response("open")

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    made = Listening(http.config(app, Settings(redis_url="redis://unused")), app)
    made.address, made.gate = listener.getsockname(), app.state.gate
    serving = asyncio.create_task(made.serve(sockets=[listener]))
    while not made.started:
        await asyncio.sleep(0.01)
    yield made
    made.should_exit = True
    await serving


@pytest.fixture
async def connect(server: Listening) -> AsyncIterator[Open]:
    writers = []

    async def opened(data: bytes) -> Opened:
        before = len(server.server_state.connections)
        reader, writer = await asyncio.open_connection(*server.address)
        writers.append(writer)
        writer.write(data)
        await until(lambda: len(server.server_state.connections) > before)
        return reader, writer

    yield opened
    for writer in writers:
        writer.close()


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether the connection ends without an answer; what the server had not read makes it a reset."""
    try:
        return await asyncio.wait_for(reader.read(), 60) == b""
    except ConnectionResetError:
        return True


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


def connections(server: Listening) -> set[Connection]:
    return server.server_state.connections  # type: ignore[return-value]


def only(server: Listening) -> Connection:
    (found,) = connections(server)
    return found


async def after(server: Listening, seconds: float) -> None:
    patrol(connections(server), asyncio.get_running_loop().time() + seconds)


@pytest.mark.parametrize("data", [b"", b"POST /length HTTP/1.1\r\nHost: x\r\n"])
async def test_a_request_that_does_not_come(server: Listening, connect: Open, data: bytes) -> None:
    reader, _ = await connect(data)
    await after(server, HEADERS_S - 15)
    assert connections(server)
    await after(server, HEADERS_S + 1)
    assert await ended(reader)
    await until(lambda: not connections(server))


async def test_a_body_that_stops(server: Listening, connect: Open) -> None:
    reader, _ = await connect(b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
    await until(lambda: only(server).cycle is not None)
    await after(server, BODY_IDLE_S - 15)
    assert connections(server)
    await after(server, BODY_IDLE_S + 1)
    assert await ended(reader)
    await until(lambda: not server.server_state.tasks)


async def test_an_answer_that_is_not_taken(server: Listening, connect: Open) -> None:
    reader, _ = await connect(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: only(server).cycle is not None and only(server).transport.get_write_buffer_size() > 0)
    last = -1
    while only(server).transport.get_write_buffer_size() != last:  # until the client's own buffers are full
        last = only(server).transport.get_write_buffer_size()
        await asyncio.sleep(0.3)
    await after(server, 0)
    await after(server, WRITE_IDLE_S + 1)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(LARGE)
    await until(lambda: not server.server_state.tasks)


async def test_answers_that_are_not_taken_are_bounded_together(
    server: Listening, connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http.untaken, "most", 3 * LARGE)
    opened = []
    for _ in range(8):
        opened.append(await connect(b"GET /whole/large HTTP/1.1\r\nHost: x\r\n\r\n"))
        # It has been answered; it may have been ended for it.
        await until(lambda: all(c.cycle is not None and c.cycle.response_complete for c in connections(server)))
        assert http.untaken.bytes <= 3 * LARGE
    assert 1 <= len(connections(server)) <= 3
    reader, _ = opened[-1]  # the newest is left alone
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert len(await reader.readexactly(LARGE)) == LARGE
    await after(server, 0)
    await after(server, WRITE_IDLE_S + 1)  # the others stall
    assert http.untaken.bytes == 0


async def test_a_request_that_only_takes_long_is_left_alone(server: Listening, connect: Open) -> None:
    reader, _ = await connect(b"GET /gate HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: bool(server.server_state.tasks))
    await after(server, 3600)
    server.gate.set()
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")


async def test_too_many_connections_end_the_idle_ones(server: Listening, connect: Open) -> None:
    class Few(Connection):
        most = 8

    server.config.http_protocol_class = Few
    busy, _ = await connect(b"GET /gate HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: bool(server.server_state.tasks))
    opened = []
    for _ in range(20):
        opened.append(await asyncio.open_connection(*server.address))
    await until(lambda: sum(reader.at_eof() for reader, _ in opened) >= 13)
    assert len(connections(server)) <= 8
    server.gate.set()
    assert (await busy.readline()).startswith(b"HTTP/1.1 200")
    for _, writer in opened:
        writer.close()


async def test_an_answered_request_leaves_nothing_to_the_garbage_collector(server: Listening, connect: Open) -> None:
    def cycles() -> int:
        return sum(type(held) is RequestResponseCycle for held in gc.get_objects())

    reader, writer = await connect(b"")
    gc.disable()
    try:
        before = cycles()
        for _ in range(20):
            writer.write(b"GET /whole HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"whole")).startswith(b"HTTP/1.1 200")
        assert cycles() <= before + 2
    finally:
        gc.enable()


async def test_a_connection_that_was_reset_is_let_go(server: Listening, connect: Open) -> None:
    reader, writer = await connect(b"GET /whole HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"whole")
    connection = only(server)
    assert connection.timeout_keep_alive_task is not None
    at_once = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    writer.close()
    await until(lambda: not connections(server))
    assert connection.timeout_keep_alive_task is None


def asks(server: Listening, *requests: bytes) -> socket.socket:
    """A connection that waits to be accepted: the event loop, which is this test's own, has had no turn."""
    one = socket.create_connection(server.address, timeout=60)
    for request in requests:
        one.sendall(request)
    return one


async def heard(one: socket.socket) -> bytes:
    """Everything until the end."""
    reader, writer = await asyncio.open_connection(sock=one)
    found = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    return found


async def test_at_the_end_whoever_has_connected_is_answered(server: Listening) -> None:
    waiting = [asks(server, b"GET /whole HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(5)]
    silent = asks(server)
    await server.shutdown()
    for one in waiting:
        answer = await heard(one)
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"connection: close\r\n\r\nwhole")
    assert await heard(silent) == b""


async def test_at_the_end_nobody_is_kept_waiting(server: Listening, connect: Open) -> None:
    busy, _ = await connect(b"GET /gate HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: bool(server.server_state.tasks))
    idle, _ = await connect(b"GET /whole HTTP/1.1\r\nHost: x\r\n\r\n")
    again, other = await connect(b"GET /whole HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"connection: close" not in await idle.readuntil(b"whole")
    await again.readuntil(b"whole")
    ending = asyncio.create_task(server.shutdown())
    other.write(b"GET /whole HTTP/1.1\r\nHost: x\r\n\r\n")  # crosses the end
    assert b"connection: close" in await again.read()
    assert await idle.read() == b""
    with pytest.raises(ConnectionRefusedError):
        asks(server)
    assert not ending.done()
    server.gate.set()
    assert b"connection: close" in await busy.read()
    await ending


@pytest.mark.parametrize(
    ("head", "status", "word"),
    [
        (b"GET /v2/x HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, b"Host"),
        (b"POST /v2/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, b"gzip"),
        (b"POST /v2/x?a=b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, b"no HTTP"),
        (b"GET /v2/" + b"x" * 70_000, 431, b"headers"),
    ],
)
async def test_what_is_no_request_is_refused_as_its_path_wants_it(
    server: Listening, connect: Open, head: bytes, status: int, word: bytes
) -> None:
    for path, field in ((b"/v2/", b'{"error":"'), (b"/v1/", b'"instance":"/v1/x')):
        reader, _ = await connect(head.replace(b"/v2/", path))
        answer = await asyncio.wait_for(reader.read(), 60)
        assert answer.startswith(b"HTTP/1.1 %d" % status)
        assert word in answer
        assert field in answer
        assert b"x-request-id: " in answer


async def test_what_follows_a_request_is_not_taken_for_its_path(server: Listening, connect: Open) -> None:
    reader, writer = await connect(b"GET /whole HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"whole")
    writer.write(b"\x16\x03\x01 what is this\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 60)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"/whole" not in answer


async def test_http_1_0_needs_no_host(server: Listening, connect: Open) -> None:
    reader, _ = await connect(b"GET /whole HTTP/1.0\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200")


async def test_the_file_limit_is_raised_as_far_as_it_goes() -> None:
    import resource

    soft = http.raise_file_limit()
    assert soft == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert soft <= resource.getrlimit(resource.RLIMIT_NOFILE)[1] or soft > 0
