"""Bodies that lie, over raw sockets: each is refused by a 4xx that says why, and the service is as it was before."""

from __future__ import annotations

import gzip
import io
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import numpy as np
import pytest
from running import Service, start_service, until

from . import networks
from .field import ONES, call, deploy, log_of, memory_mib, pids, predict, publish, request

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
V2, PREDICT, PICTURE = "/v2/models/web/infer", "/predict/web", "/predict/picture"
BODY_IDLE_S = 2


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    started = start_service(
        tmp_path_factory.mktemp("bodies"),
        workers=0,
        ENGINESMITH_BODY_IDLE_S=str(BODY_IDLE_S),
        ENGINESMITH_BODY_TOTAL_S="20",
    )
    publish(started, networks.scaled())
    publish(started, networks.picture(), "picture", shape=(-1, 3, 8, 8), preprocess={"resize": [8, 8]})
    deploy(started, "web", "net@1")
    deploy(started, "picture", "picture@1")
    yield started
    assert started.stop() == 0


@pytest.fixture(autouse=True)
def _unharmed(service: Service) -> Iterator[None]:
    """Whatever a test sends: afterwards the same process answers as before, and holds little more than before."""
    ids, held = pids(service), memory_mib(service)
    yield
    for _ in range(3):
        assert predict(service, "web", [[1, 2, 3]]).json()["outputs"]["logits"] == [[1, 2, 3]]
    assert pids(service) == ids
    until(lambda: memory_mib(service) < held + 64)
    assert "an error that nobody foresaw" not in log_of(service)
    assert "Traceback" not in log_of(service)


def connect(service: Service) -> socket.socket:
    url = httpx.URL(service.url)
    assert url.port
    return socket.create_connection((url.host, url.port), timeout=240)


def read(one: socket.socket) -> tuple[int, dict[str, Any]]:
    """Status and JSON of one answer."""
    text = b""
    while True:
        head, end, body = text.partition(b"\r\n\r\n")
        if end:
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            if len(body) >= length:
                return int(head[9:12]), json.loads(body[:length])
        part = one.recv(65536)
        assert part, f"closed after {text!r}"
        text += part


def ask(service: Service, data: bytes) -> tuple[int, dict[str, Any]]:
    with closing(connect(service)) as one:
        one.sendall(data)
        return read(one)


def refused(answer: tuple[int, dict[str, Any]], *statuses: int, word: str = "") -> None:
    status, body = answer
    assert status in statuses, answer
    told = body.get("error") or body["detail"]
    assert told
    assert word.lower() in json.dumps(body).lower(), body


def v2(tensor: dict[str, Any], rest: bytes = b"", header: int | None = None, **more: Any) -> bytes:
    one = {"name": "x", "datatype": "FP32", "shape": [1, 3]} | tensor
    text = json.dumps({"inputs": [one]} | more).encode()
    named = {"Inference_Header_Content_Length": str(len(text) if header is None else header)} if rest else {}
    return request(V2, text + rest, **named)


ROW = np.ones(3, np.float32).tobytes()


@pytest.mark.parametrize(
    ("body", "statuses", "word"),
    [
        (gzip.compress(bytes(300 << 20), 9), (413,), "unpacks"),
        (gzip.compress(gzip.compress(bytes(300 << 20), 9)), (400,), "JSON"),
        (gzip.compress(b"[" * (60 << 20), 9), (400,), ""),
        (gzip.compress(ONES)[:-4], (400,), "middle"),
        (gzip.compress(ONES) * 1000, (400, 413), ""),
        (b"\x1f\x8b" + bytes(1000), (400,), "gzip"),
    ],
    ids=["bomb", "twice", "nested JSON", "cut off", "many members", "no gzip"],
)
def test_gzip(service: Service, body: bytes, statuses: tuple[int, ...], word: str) -> None:
    refused(ask(service, request(V2, body, Content_Encoding="gzip")), *statuses, word=word)


def test_a_bomb_of_deflate_sixteen_times_at_once(service: Service) -> None:
    bomb = request(V2, zlib.compress(b" " * (60 << 20), 9), Content_Encoding="deflate")
    told = call(service, [bomb], mode="closed", connections=16, seconds=1)
    told.only(400, 413, 429)


@pytest.mark.parametrize("path", [PREDICT, V2])
def test_a_length_that_is_too_long(service: Service, path: str) -> None:
    """The rest never comes: it is not waited for for long; and where the client ends the connection, not at all."""
    with closing(connect(service)) as one:
        one.sendall(request(path, ONES, length=len(ONES) + 10))
        refused(read(one), 408)
    with closing(connect(service)) as one:
        one.sendall(request(path, ONES, length=len(ONES) + 10))
        one.shutdown(socket.SHUT_WR)
        refused(read(one), 400)


@pytest.mark.parametrize("path", [PREDICT, V2])
def test_a_length_that_is_too_short(service: Service, path: str) -> None:
    refused(ask(service, request(path, ONES, length=len(ONES) - 5)), 400, 422)


@pytest.mark.parametrize("length", ["-1", "1x", "99999999999999999999999", "0x10", "1, 2"])
def test_a_length_that_is_none(service: Service, length: str) -> None:
    refused(ask(service, request(PREDICT, b"", Content_Length=length)), 400, 413)


def test_two_lengths_and_a_length_with_chunks(service: Service) -> None:
    two = request(PREDICT, ONES).replace(b"\r\nContent-Length", b"\r\nContent-Length: 5\r\nContent-Length", 1)
    refused(ask(service, two), 400)
    both = request(PREDICT, b"5\r\nabcde\r\n0\r\n\r\n", Transfer_Encoding="chunked", Content_Length="5")
    refused(ask(service, both), 400)


@pytest.mark.parametrize("path", [PREDICT, V2])
def test_chunks_that_never_end(service: Service, path: str) -> None:
    begun = request(path, b"", Transfer_Encoding="chunked")
    with closing(connect(service)) as one:  # and nothing more comes
        one.sendall(begun + b"5\r\nabcde\r\n")
        refused(read(one), 408)
    with closing(connect(service)) as one:  # or ever more: until there is too much of it
        chunk = b"%x\r\n" % (1 << 20) + b" " * (1 << 20) + b"\r\n"
        one.sendall(begun)
        for _ in range(70):
            one.sendall(chunk)
        refused(read(one), 413)


@pytest.mark.parametrize(
    "chunk", [b"xyz\r\nabc\r\n", b"-5\r\nabc\r\n", b"fffffffffffffffff\r\nabc\r\n", b"3\r\nabcdef\r\n"]
)
def test_chunks_that_are_none(service: Service, chunk: bytes) -> None:
    refused(ask(service, request(PREDICT, chunk, Transfer_Encoding="chunked")), 400)


@pytest.mark.parametrize(
    "data",
    [
        v2({"parameters": {"binary_data_size": 10**18}}, ROW),
        v2({"parameters": {"binary_data_size": 2**64}}, ROW),
        v2({"parameters": {"binary_data_size": -12}}, ROW),
        v2({"parameters": {"binary_data_size": 11}}, ROW),
        v2({"parameters": {"binary_data_size": 13}}, ROW),
        v2({"parameters": {"binary_data_size": 12}}, ROW[:-1]),
        v2({"parameters": {"binary_data_size": 12}}, ROW * 2),
        v2({"parameters": {"binary_data_size": "12"}}, ROW),
        v2({"parameters": {"binary_data_size": 12.5}}, ROW),
        v2({"parameters": {"binary_data_size": 12}}, ROW, header=10**9),
        v2({"parameters": {"binary_data_size": 12}}, ROW, header=-1),
        v2({"parameters": {"binary_data_size": 12}}, ROW, header=3),
        v2({"shape": [2**32, 2**32], "parameters": {"binary_data_size": 12}}, ROW),
        v2({"shape": [2**62, 3], "parameters": {"binary_data_size": 12}}, ROW),
        v2({"shape": [2**31, 3], "data": [1, 1, 1]}),
        v2({"shape": [10**30, 3], "data": [1, 1, 1]}),
        v2({"shape": [-1, 3], "data": [1, 1, 1]}),
        v2({"shape": [-1, -3], "data": [1, 1, 1]}),
        v2({"shape": [0, 3], "data": []}),
        v2({"shape": [0, 3], "parameters": {"binary_data_size": 0}}, b" "),
        v2({"shape": [], "data": [1]}),
        v2({"shape": [1] * 100, "data": [1]}),
        v2({"shape": [1.5, 3], "data": [1, 1, 1]}),
        v2({"shape": "3", "data": [1, 1, 1]}),
        v2({"shape": [True, 3], "data": [1, 1, 1]}),
        v2({"shape": None, "data": [1, 1, 1]}),
        v2({"data": [1, 1]}),
        v2({"data": [1, 1, 1e400]}),
        v2({"data": [1, 1, 1e39]}),
        v2({"datatype": "BYTES", "parameters": {"binary_data_size": 12}}, struct.pack("<I", 2**32 - 1) + bytes(8)),
    ],
)
def test_sizes_and_shapes_that_lie(service: Service, data: bytes) -> None:
    refused(ask(service, data), 400)


def npy(shape: str, data: bytes = ROW, descr: str = "'<f4'") -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return request(
        PREDICT, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data, Content_Type="application/x-npy"
    )


@pytest.mark.parametrize(
    "data",
    [
        npy("(4294967296, 4294967296)"),
        npy("(9223372036854775807, 3)"),
        npy("(10" + "0" * 400 + ", 3)"),
        npy("(-1, 3)"),
        npy("(-1, -3)"),
        npy("(0, 3)", b""),
        npy("(0, 3)"),
        npy("()"),
        npy("(1, 3)", ROW[:-1]),
        npy("(1, 3)", descr="'|O'"),
        npy("(1, 3)", descr="'<f4,<f4'"),
        npy("(1, 3)", descr="'<c16'"),
        npy("__import__('os').abort()"),
        npy("(1,) * 1000"),
        npy("(1.0, 3)"),
        npy("(1000000000, 3)"),
    ],
)
def test_npy_that_lies(service: Service, data: bytes) -> None:
    refused(ask(service, data), 400, 413, 422)


def image(width: int, height: int, data: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def compressible(count: int) -> bytes:
    packed = io.BytesIO()
    stream = zlib.compressobj(9)
    for _ in range(count >> 20):
        packed.write(stream.compress(bytes(1 << 20)))
    packed.write(stream.flush())
    return packed.getvalue()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (image(30_000, 30_000, compressible(256 << 20)), "image/png"),
        (image(2**31 - 1, 2**31 - 1, b""), "image/png"),
        (image(0, 0, b""), "image/png"),
        (image(1000, 1000, compressible(3 << 20))[:-500], "image/png"),
        (image(5000, 5000, zlib.compress(b"")), "image/png"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff\xe0" + bytes(10_000), "image/jpeg"),
        (b"GIF89a" + bytes(1000), "image/png"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png"),
        (b"hello", "image/jpeg"),
        (b"", "image/png"),
    ],
    ids=["bomb", "huge", "nothing", "cut off", "empty", "head", "zeros", "gif", "svg", "text", "none"],
)
def test_images_that_are_bombs_or_none(service: Service, data: bytes, kind: str) -> None:
    refused(ask(service, request(PICTURE, data, Content_Type=kind)), 400, 413, 415, 422)


def test_no_rows_and_lists_that_are_no_tensor(service: Service) -> None:
    for inputs in ([], [[]], [[[]]], [[1, 2], [3]], [[1, 2, 3]] * 9, "x", None, {}, [[None] * 3], [[1, 2, {}]]):
        refused(ask(service, request(PREDICT, json.dumps({"inputs": inputs}).encode())), 400, 422)


def test_many_of_them_in_a_row_take_no_memory(service: Service) -> None:
    held = memory_mib(service)
    bad = [
        npy("(4294967296, 4294967296)"),
        v2({"shape": [2**62, 3], "parameters": {"binary_data_size": 12}}, ROW),
        request(V2, gzip.compress(bytes(1 << 20), 9), Content_Encoding="gzip"),
        request(PICTURE, image(2**31 - 1, 2**31 - 1, b""), Content_Type="image/png"),
        request(PREDICT, b'{"inputs": [[1, 2]]}'),
    ]
    call(service, bad, mode="closed", connections=8, seconds=2).only(400, 422)
    until(lambda: memory_mib(service) < held + 64)
