"""Predictions over real sockets: clients that are slow, cut off, lying, gone or too many, and harm nobody."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import numpy as np
import orjson
import pytest
from fastapi import FastAPI

from app import http
from app.api.hot import Hot
from app.main import create_app
from app.serving.lane import Lane
from app.settings import MiB, Settings

from .test_predict import NPY, Gated, X, Y, lane, npy, serve_lane

ROW = b'{"inputs": [[1, 2, 3]]}'


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection, on which a test says exactly what is sent when."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> Answer:
        async with asyncio.timeout(60):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(head[0].split()[1]), headers, body)

    async def post(self, body: bytes = ROW, path: str = "/predict/plain", **headers: str) -> Answer:
        await self.send(request(len(body), path, **headers) + body)
        return await self.answer()


def request(length: int | None, path: str = "/predict/plain", **headers: str) -> bytes:
    lines = {"Host": "x", "Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    if length is not None:
        lines["Content-Length"] = str(length)
    return (f"POST {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n").encode()


class Served(NamedTuple):
    app: FastAPI
    lane: Lane
    connect: Callable[[], Any]

    @property
    def hot(self) -> Hot:
        found: Hot = self.app.hot  # type: ignore[attr-defined]
        return found


@asynccontextmanager
async def served(settings: Settings, made: Callable[[], Lane] = lambda: lane([X], [Y]), **changes: Any) -> Any:
    settings = settings.model_copy(update=changes)
    app = create_app(settings)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = http.Server(http.config(app, settings), app)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    await app.state.fleet.settled()
    clients: list[Client] = []

    async def connect() -> Client:
        clients.append(Client(*await asyncio.open_connection(*listener.getsockname())))
        return clients[-1]

    try:
        yield Served(app, serve_lane(app, "plain", made()), connect)
        # Whatever was done to it, it serves, and holds nothing.
        assert (await (await connect()).post()).status == 200
        assert app.hot._flights.held == 0  # type: ignore[attr-defined]
    finally:
        for client in clients:
            client.writer.close()
        server.should_exit = True
        await serving


@pytest.fixture
async def plain(settings: Settings) -> AsyncIterator[Served]:
    async with served(settings) as made:
        yield made


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


async def test_an_answer_and_the_next_on_one_connection(plain: Served) -> None:
    client = await plain.connect()
    first = await client.post(X_Request_Id="mine-1")
    assert first.json == {"model": "net@1", "outputs": {"y": [[1, 2, 3]]}}
    assert first.headers["x-request-id"] == "mine-1"
    assert first.headers["enginesmith-model"] == "net@1"
    assert first.headers["content-type"] == "application/json"
    assert "date" in first.headers
    others = [(await client.post(X_Request_Id=id)).headers["x-request-id"] for id in ("", "ä", "x" * 200)]
    assert len({*others, "mine-1"}) == 4
    assert {len(id) for id in others} == {32}


async def test_pipelined_chunked_expected_and_old(plain: Served) -> None:
    client = await plain.connect()
    await client.send((request(len(ROW)) + ROW) * 3)
    assert [(await client.answer()).status for _ in range(3)] == [200] * 3
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (ROW[:5], ROW[5:]))
    await client.send(request(None, Transfer_Encoding="chunked") + pieces + b"0\r\n\r\n")
    assert (await client.answer()).status == 200
    await client.send(request(len(ROW), Expect="100-continue"))
    assert (await client.answer()).status == 100
    await client.send(ROW)
    assert (await client.answer()).status == 200
    assert (await client.post(Connection="close")).headers["connection"] == "close"
    assert await client.reader.read() == b""
    old = await plain.connect()
    await old.send(request(len(ROW)).replace(b"HTTP/1.1", b"HTTP/1.0") + ROW)
    assert (await old.answer()).status == 200


async def test_a_body_in_many_parts(plain: Served) -> None:
    body = ROW[:-1] + b" " * 3 * MiB + b"}"
    client = await plain.connect()
    await client.send(request(len(body)))
    for at in range(0, len(body), 100_000):
        await client.send(body[at : at + 100_000])
    assert (await client.answer()).json["outputs"] == {"y": [[1, 2, 3]]}
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    for order in ("C", "F", "C"):
        found = await client.post(npy(np.asarray(x, order=order)), Content_Type=NPY, Accept="application/json")
        assert found.json["outputs"]["y"] == x.tolist()


async def test_names_in_the_path(plain: Served) -> None:
    client = await plain.connect()
    assert (await client.post(path="/predict/pl%61in?x=1")).status == 200
    for path in ("/predict/", "/predict/a/b", "/predict/a%2Fb", "/predict/plain/"):
        assert (await (await plain.connect()).post(path=path)).status == 404
    behind = plain.hot.route({"path": "/api/predict/plain", "root_path": "/api"})
    assert behind is not None
    assert (behind.name, behind.path) == ("plain", "/predict/plain")
    assert plain.hot.route({"path": "/apipredict/plain", "root_path": "/api"}) is None
    for number in range(5000):
        plain.hot.route({"path": f"/predict/{number}"})
    assert len(plain.hot._routes) <= 4096


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_other_methods_are_left_to_the_router(plain: Served, method: str) -> None:
    client = await plain.connect()
    await client.send(request(0).replace(b"POST", method.encode()))
    answer = await client.answer()
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


async def test_a_body_over_the_limit_is_refused_before_it_is_read(settings: Settings) -> None:
    async with served(settings, max_predict_bytes=1000) as plain:
        client = await plain.connect()
        await client.send(request(2000))
        answer = await client.answer()
        assert (answer.status, answer.json["code"], answer.headers["connection"]) == (413, "too_large", "close")
        chunked = await plain.connect()
        await chunked.send(request(None, Transfer_Encoding="chunked") + b"1000\r\n" + b" " * 0x1000 + b"\r\n")
        assert (await chunked.answer()).status == 413


async def test_keys(settings: Settings) -> None:
    async with served(settings, api_keys="reader=write,ok=predict") as plain:
        client = await plain.connect()
        assert (await client.post(Authorization="Bearer ok")).status == 200
        for key, status in (
            ({}, 401),
            ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": "Bearer reader"}, 403),
        ):
            client = await plain.connect()
            await client.send(request(10_000_000, **key))  # no body: nobody waits for it
            answer = await client.answer()
            assert answer.status == status
            assert answer.headers.get("www-authenticate", "").startswith("Bearer" if status == 401 else "")
        plain.hot._keyring.asks = False  # for the last look


async def test_a_body_that_stalls(settings: Settings) -> None:
    async with served(settings, body_idle_s=0.2) as plain:
        client = await plain.connect()
        await client.send(request(100) + ROW)
        answer = await client.answer()
        assert (answer.status, answer.json["code"]) == (408, "body_too_slow")


async def test_a_body_that_drips(settings: Settings) -> None:
    async with served(settings, body_total_s=0.3) as plain:
        client = await plain.connect()
        await client.send(request(1_000_000))
        waiting = asyncio.create_task(client.answer())
        while not waiting.done():
            await client.send(b" ")
            await asyncio.sleep(0.01)
        assert (await waiting).status == 408


async def test_a_body_that_is_cut_off(plain: Served) -> None:
    client = await plain.connect()
    await client.send(request(100) + ROW)
    client.writer.write_eof()
    answer = await client.answer()
    assert (answer.status, answer.json["code"]) == (400, "body_cut_off")
    assert plain.lane.batcher.engine.seen == []  # type: ignore[attr-defined]
    gone = await plain.connect()
    await gone.send(request(3 * MiB) + b" " * MiB)
    await until(lambda: plain.hot._flights.held > 0)
    gone.writer.transport.abort()
    await until(lambda: plain.hot._flights.held == 0)


async def test_a_length_that_is_too_short(plain: Served) -> None:
    client = await plain.connect()
    await client.send(request(len(ROW) - 1) + ROW)
    answer = await client.answer()  # the rest is no request
    assert (answer.status, answer.json["code"]) == (400, "bad_http")


@pytest.mark.parametrize(
    "head", [b"NONSENSE\r\n\r\n", request(None, Content_Length="-5"), request(None, Content_Length="1x")]
)
async def test_what_is_no_http(plain: Served, head: bytes) -> None:
    client = await plain.connect()
    await client.send(head)
    answer = await client.answer()
    assert (answer.status, answer.headers["content-type"]) == (400, "application/problem+json")


async def test_headers_without_end(plain: Served) -> None:
    client = await plain.connect()
    await client.send(request(1)[:-2] + b"X-Long: " + b"x" * 70_000)
    answer = await client.answer()
    assert (answer.status, answer.json["code"]) == (431, "headers_too_large")


async def test_bodies_together_are_bounded(settings: Settings) -> None:
    async with served(settings, max_predict_bytes=2 * MiB, max_bodies_bytes=3 * MiB) as plain:
        size = 2 * MiB - 100_000
        one, other = await plain.connect(), await plain.connect()
        await one.send(request(size) + b" " * (size - 100))
        await until(lambda: plain.hot._flights.held == size - 100)
        await other.send(request(size) + b" " * (size - 100))
        answer = await other.answer()
        assert (answer.status, answer.json["code"], answer.headers["retry-after"]) == (429, "too_many_bytes", "1")
        assert (await (await plain.connect()).post()).status == 200  # a small one finds room
        await one.send(b" " * (100 - len(ROW)) + ROW)
        assert (await one.answer()).status == 200


async def test_what_bodies_unpack_to_counts_with_them(settings: Settings) -> None:
    gated = lane([X], [Y])
    engine = Gated(gated.signature)
    made = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    whole = orjson.dumps({"inputs": [made]}) + b" " * 1_900_000
    small = gzip.compress(whole)
    path, coding = "/v2/models/plain/infer", {"Content_Encoding": "gzip"}
    limits = {"max_predict_bytes": 2 * MiB, "max_bodies_bytes": 3 * MiB}
    async with served(
        settings, lambda: Lane(gated.plan, gated.version, engine, gated.batcher.meter), **limits
    ) as plain:
        one, other = await plain.connect(), await plain.connect()
        await one.send(request(len(small), path, **coding) + small)
        await until(lambda: engine.begun == 1)
        assert plain.hot._flights.held == len(small) + len(whole)
        answer = await other.post(small, path, **coding)
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert "ENGINESMITH_MAX_BODIES_BYTES" in answer.json["error"]
        assert plain.hot._flights.held == len(small) + len(whole)
        engine.gate.set()
        assert (await one.answer()).status == 200
        assert (await other.post(small, path, **coding)).status == 200
    await gated.close(1)


async def test_who_goes_away_does_not_reach_the_engine(settings: Settings) -> None:
    gated = lane([X], [Y], details={"max_batch": 1})
    engine = Gated(gated.signature)
    async with served(settings, lambda: Lane(gated.plan, gated.version, engine, gated.batcher.meter)) as plain:
        first, second = await plain.connect(), await plain.connect()
        await first.send(request(len(ROW)) + ROW)
        await until(lambda: engine.begun == 1)
        await second.send(request(len(ROW)) + ROW)
        await until(lambda: plain.lane.batcher.waiting_rows == 1)
        second.writer.transport.abort()
        await until(lambda: plain.lane.batcher.waiting_rows == 0)
        engine.gate.set()
        assert (await first.answer()).status == 200
        assert engine.seen == [1]
    await gated.close(1)


NPY_HEADS = [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 9223372036854775807), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 3), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1, 3), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), 'more': 1}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 3), }",
]


@pytest.mark.parametrize("text", NPY_HEADS)
@pytest.mark.parametrize("rest", [b"", b"\0" * 12])
async def test_shapes_that_lie(plain: Served, text: str, rest: bytes) -> None:
    padded = text.ljust(117) + "\n"
    body = b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode() + rest
    answer = await (await plain.connect()).post(body, Content_Type=NPY)
    assert 400 <= answer.status < 500, answer
    assert answer.json["detail"]


async def test_more_values_than_rows_can_have(plain: Served) -> None:
    body = b'{"inputs": [' + b"[1,2,3]," * 20_000 + b"[1,2,3]]}"
    answer = await (await plain.connect()).post(body)
    assert (answer.status, "4 rows, which is max_batch, have 12" in answer.json["detail"]) == (422, True)


async def test_an_error_that_nobody_foresaw(plain: Served, caplog: pytest.LogCaptureFixture) -> None:
    plain.app.state.fleet.mirror = None  # not to be called
    answer = await (await plain.connect()).post(X_Request_Id="find-me")
    assert (answer.status, answer.json["code"]) == (500, "internal")
    assert "find-me" in answer.json["hint"]
    assert "nobody foresaw" in caplog.text
    del plain.app.state.fleet.mirror


async def test_it_is_counted(plain: Served) -> None:
    client = await plain.connect()
    line = 'enginesmith_http_requests_total{method="POST",route="/predict/{deployment}",status="%d"}'

    async def counts() -> tuple[float, ...]:
        await client.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        lines = (await client.answer()).body.decode().splitlines()
        assert "enginesmith_http_requests_in_flight 1.0" in lines
        found = dict(text.rsplit(" ", 1) for text in lines if not text.startswith("#"))
        return tuple(float(found.get(line % status, 0)) for status in (200, 422))

    before = await counts()
    await client.post()
    await client.post(orjson.dumps({"inputs": 1}))
    assert await counts() == (before[0] + 1, before[1] + 1)
