"""Clients that stall: each is ended, and those that work are left alone. Real sockets; the clock is the test's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from fastapi import FastAPI, Request, Response

from app import http
from app.http import BODY_IDLE_S, HEADERS_S, WRITE_IDLE_S, Connection, Server, patrol
from app.settings import Settings

LARGE = 32_000_000  # more than the buffers of a socket pair hold
Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Open = Callable[[bytes], Awaitable[Opened]]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    app = FastAPI()
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
    made = Server(http.config(app, Settings(redis_url="redis://unused")), app)
    serving = asyncio.create_task(made.serve(sockets=[listener]))
    while not made.started:
        await asyncio.sleep(0.01)
    made.address = listener.getsockname()  # type: ignore[attr-defined]
    made.gate = app.state.gate  # type: ignore[attr-defined]
    yield made
    made.should_exit = True
    await serving


@pytest.fixture
async def connect(server: Server) -> AsyncIterator[Open]:
    writers = []

    async def opened(data: bytes) -> Opened:
        before = len(server.server_state.connections)
        reader, writer = await asyncio.open_connection(*server.address)  # type: ignore[attr-defined]
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


def connections(server: Server) -> set[Connection]:
    return server.server_state.connections  # type: ignore[return-value]


def only(server: Server) -> Connection:
    (found,) = connections(server)
    return found


async def after(server: Server, seconds: float) -> None:
    patrol(connections(server), asyncio.get_running_loop().time() + seconds)


@pytest.mark.parametrize("data", [b"", b"POST /length HTTP/1.1\r\nHost: x\r\n"])
async def test_a_request_that_does_not_come(server: Server, connect: Open, data: bytes) -> None:
    reader, _ = await connect(data)
    await after(server, HEADERS_S - 15)
    assert connections(server)
    await after(server, HEADERS_S + 1)
    assert await ended(reader)
    await until(lambda: not connections(server))


async def test_a_body_that_stops(server: Server, connect: Open) -> None:
    reader, _ = await connect(b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
    await until(lambda: only(server).cycle is not None)
    await after(server, BODY_IDLE_S - 15)
    assert connections(server)
    await after(server, BODY_IDLE_S + 1)
    assert await ended(reader)
    await until(lambda: not server.server_state.tasks)


async def test_an_answer_that_is_not_taken(server: Server, connect: Open) -> None:
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


async def test_a_request_that_only_takes_long_is_left_alone(server: Server, connect: Open) -> None:
    reader, _ = await connect(b"GET /gate HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: bool(server.server_state.tasks))
    await after(server, 3600)
    server.gate.set()  # type: ignore[attr-defined]
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")


async def test_too_many_connections_end_the_idle_ones(server: Server, connect: Open) -> None:
    class Few(Connection):
        most = 8

    server.config.http_protocol_class = Few
    busy, _ = await connect(b"GET /gate HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: bool(server.server_state.tasks))
    opened = []
    for _ in range(20):
        opened.append(await asyncio.open_connection(*server.address))  # type: ignore[attr-defined]
    await until(lambda: sum(reader.at_eof() for reader, _ in opened) >= 13)
    assert len(connections(server)) <= 8
    server.gate.set()  # type: ignore[attr-defined]
    assert (await busy.readline()).startswith(b"HTTP/1.1 200")
    for _, writer in opened:
        writer.close()


async def test_the_file_limit_is_raised_as_far_as_it_goes() -> None:
    import resource

    soft = http.raise_file_limit()
    assert soft == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert soft <= resource.getrlimit(resource.RLIMIT_NOFILE)[1] or soft > 0
