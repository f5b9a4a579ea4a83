"""What only a real server over a real socket shows: memory, clients that go away, refusals before the body."""

import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest
from running import Service, files_in, start_service, until

MiB = 1 << 20
HEADERS = {"Content-Type": "multipart/form-data; boundary=bb"}


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service without workers: what is queued stays queued."""
    started = start_service(tmp_path_factory.mktemp("lone"), workers=0)
    yield started
    started.stop()


def body(file: Iterator[bytes], manifest: dict[str, str]) -> Iterator[bytes]:
    text = json.dumps(manifest).encode()
    yield b'--bb\r\nContent-Disposition: form-data; name="manifest"\r\n\r\n' + text + b"\r\n"
    yield b'--bb\r\nContent-Disposition: form-data; name="file"; filename="a.safetensors"\r\n\r\n'
    yield from file
    yield b"\r\n--bb--\r\n"


def safetensors(size: int) -> Iterator[bytes]:
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    yield struct.pack("<Q", len(header)) + header
    block = os.urandom(MiB)
    for _ in range(size // MiB):
        yield block


def staged(service: Service) -> list[Path]:
    return files_in(service.data / "store" / "staging")


def app_of(service: Service) -> psutil.Process:
    children = psutil.Process(service.process.pid).children(recursive=True)
    return next(p for p in children if "http" in p.cmdline())


def connect(service: Service) -> socket.socket:
    url = httpx.URL(service.url)
    assert url.port
    return socket.create_connection((url.host, url.port), timeout=240)


def test_memory_stays_flat(lone: Service) -> None:
    app = app_of(lone)
    before = peak = app.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, app.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        content = body(safetensors(384 * MiB), {"name": "big"})
        answer = httpx.post(f"{lone.url}/v1/models", content=content, headers=HEADERS, timeout=240)
    finally:
        done.set()
        watching.join()
    assert answer.status_code == 202, answer.text
    # It takes some 30 MiB. The allocator may keep more, but not what was uploaded.
    assert peak - before < 192 * MiB
    assert answer.json()["spec"]["bytes"] > 384 * MiB


@pytest.mark.parametrize("path", ["/v1/models", "/v1/datasets"])
def test_a_client_that_goes_away_leaves_nothing(lone: Service, path: str) -> None:
    before = staged(lone)
    scratch = lone.data / "scratch"
    held_before = len(list(scratch.glob("dataset-*")))

    def traces() -> int:
        return len(staged(lone)) - len(before) + len(list(scratch.glob("dataset-*"))) - held_before

    with closing(connect(lone)) as client:
        client.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {HEADERS['Content-Type']}\r\n"
            "Content-Length: 900000000\r\n\r\n".encode()
        )
        chunks = body(safetensors(900 * MiB), {"name": "gone"} | ({} if "models" in path else {"kind": "arrays"}))
        for _ in range(30):
            client.sendall(next(chunks))
        until(lambda: traces() > 0)
    until(lambda: traces() == 0)
    assert staged(lone) == before


def test_a_declared_size_is_refused_unread(lone: Service) -> None:
    with closing(connect(lone)) as client:
        client.sendall(
            b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 999999999\r\n\r\n"
        )
        head = client.recv(4096)
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in head.lower()


def test_an_early_refusal_is_heard_by_a_client_that_goes_on_writing(lone: Service) -> None:
    def picture() -> Iterator[bytes]:
        yield b"\x89PNG\r\n\x1a\n" + bytes(10_000)
        for _ in range(32):  # more than sockets hold
            yield bytes(MiB)

    content = body(picture(), {"name": "big"})
    answer = httpx.post(f"{lone.url}/v1/models", content=content, headers=HEADERS, timeout=240)
    assert (answer.status_code, answer.json()["code"]) == (415, "not_a_checkpoint")


def test_readers_of_events_do_not_hold_the_service_up(lone: Service, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = body(safetensors(MiB), {"name": "small"})
    job = httpx.post(f"{lone.url}/v1/models", content=content, headers=HEADERS, timeout=240).json()
    app = app_of(lone)
    with httpx.Client(base_url=lone.url, timeout=60) as client:
        client.get("/v1/models")
        before = app.num_fds()
        readers = [connect(lone) for _ in range(40)]
        for reader in readers:
            reader.sendall(f"GET {job['links']['events']} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert all(b"200 OK" in reader.recv(4096) for reader in readers)
        assert client.get("/v1/models").status_code == 200  # the readers would stay for ever
        for reader in readers:
            reader.close()
        until(lambda: app.num_fds() <= before + 10)


def test_it_stops_while_somebody_waits(tmp_path_factory: pytest.TempPathFactory) -> None:
    service = start_service(tmp_path_factory.mktemp("stopping"), workers=0)
    try:
        content = body(safetensors(MiB), {"name": "small"})
        job = httpx.post(f"{service.url}/v1/models", content=content, headers=HEADERS, timeout=240).json()
        with closing(connect(service)) as events, closing(connect(service)) as waiter:
            events.sendall(f"GET {job['links']['events']} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            fields = ("Host: x", "Prefer: wait=60", "Expect: 100-continue")
            waiter.sendall("\r\n".join((f"GET {job['links']['self']} HTTP/1.1", *fields, "\r\n")).encode())
            assert b"200 OK" in events.recv(4096)
            assert b"100 Continue" in waiter.recv(4096)  # said when the handler first looks whether we are still there
            assert service.stop() == 0
            assert b"200 OK" in waiter.recv(4096)
        said = (service.data / "service.log").read_text()
        assert "graceful shutdown exceeded" not in said  # nobody had to be cut off
        assert "did not stop in time" not in said
    finally:
        service.stop()
