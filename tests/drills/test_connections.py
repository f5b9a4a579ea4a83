"""Clients that hold connections and do nothing useful with them, while others are answered."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from running import Service, until

from . import networks
from .conftest import Start
from .field import ONES, ONES_V2, Calling, call, deploy, family, log_of, memory_mib, pids, predict, publish, request

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
IDLE, HALF, READERS = 10_000, 2_000, 200
ASKS = [request("/predict/web", ONES), request("/v2/models/web/infer", ONES_V2)]


@pytest.fixture(autouse=True)
def _many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < IDLE + 2000:
        pytest.skip(f"a process may have {hard} open files here, and this drill needs {IDLE + 2000}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (IDLE + 2000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def opened() -> Iterator[list[socket.socket]]:
    """Connections to be closed at the end."""
    found: list[socket.socket] = []
    yield found
    for one in found:
        one.close()


def connect(service: Service, count: int, opened: list[socket.socket], small: bool = False) -> None:
    url = httpx.URL(service.url)
    for _ in range(count):
        one = socket.socket()
        if small:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.settimeout(240)
        one.connect((url.host, url.port))
        opened.append(one)


def served(service: Service) -> Service:
    publish(service, networks.scaled())
    deploy(service, "web", "net@1")
    call(service, ASKS, mode="closed", connections=8, seconds=1, check="factor").only(200)
    return service


def others(service: Service) -> Calling:
    """Clients who want predictions all the while."""
    return Calling(service, ASKS, mode="closed", connections=4, seconds=3600, check="factor")


def answered(one: socket.socket) -> bytes:
    """What comes on a connection until it ends or there is a whole answer."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := one.recv(65536):
            found += part
            head, end, body = found.partition(b"\r\n\r\n")
            if end and b"content-length: " in head.lower():
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                if len(body) >= length:
                    break
    return found


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("spoke", [False, True], ids=["silent", "kept alive"])
def test_ten_thousand_idle_connections(start: Start, opened: list[socket.socket], processes: int, spoke: bool) -> None:
    service = served(start(processes))
    held, ids = memory_mib(service), pids(service)
    made = others(service)
    try:
        connect(service, IDLE, opened)
        if spoke:
            for at in range(0, IDLE, 100):
                for one in opened[at : at + 100]:
                    one.sendall(ASKS[0])
                for one in opened[at : at + 100]:
                    assert answered(one).startswith(b"HTTP/1.1 200")
        most = memory_mib(service)
        began = time.monotonic()
        assert predict(service, "web").status_code == 200  # a new one is let in
        first_s = time.monotonic() - began
        open_still = sum(p.num_fds() for p in family(service, "http"))
        if not spoke:
            # Who opens a connection and never asks for anything is sent away before long.
            until(lambda: gone(opened) == IDLE)
        told = made.stop()
    finally:
        made.end()
    told.only(200)
    print(
        f"\n{IDLE} connections ({open_still} open), memory {held:.0f} → {most:.0f} → {memory_mib(service):.0f} MiB; "
        f"meanwhile {told.statuses}, slowest {told.worst('good_s', 2):.3f} s, a new one {first_s:.3f} s"
    )
    assert open_still > IDLE * 0.9 or not spoke
    assert pids(service) == ids
    assert most < held + 512
    assert "an error that nobody foresaw" not in log_of(service)


def gone(opened: list[socket.socket]) -> int:
    """How many the server has ended."""
    poll = select.poll()
    for one in opened:
        poll.register(one, select.POLLIN | select.POLLHUP | select.POLLERR)
    return len(poll.poll(0))


@pytest.mark.parametrize("processes", [1, 2])
def test_two_thousand_half_sent_bodies(start: Start, opened: list[socket.socket], processes: int) -> None:
    service = served(start(processes, ENGINESMITH_BODY_IDLE_S="5"))
    held, ids = memory_mib(service), pids(service)
    made = others(service)
    half = request("/predict/web", b" " * 50_000, length=100_000)
    try:
        connect(service, HALF, opened)
        for one in opened:
            one.sendall(half)
        most = 0.0
        for one in opened:
            # Refused before it was whole (the service holds so much and no more), or because it did not come.
            text = answered(one)
            assert text.startswith((b"HTTP/1.1 408", b"HTTP/1.1 429")), text[:200]
            most = max(most, memory_mib(service)) if one in opened[::100] else most
        told = made.stop()
    finally:
        made.end()
    told.only(200)
    print(
        f"\n{HALF} half bodies of 50 kB, memory {held:.0f} → {most:.0f} → {memory_mib(service):.0f} MiB; "
        f"meanwhile {told.statuses}, slowest {told.worst('good_s', 2):.3f} s"
    )
    assert pids(service) == ids
    assert most < held + 768
    until(lambda: memory_mib(service) < held + 256)
    assert "an error that nobody foresaw" not in log_of(service)


@pytest.mark.parametrize("processes", [1, 2])
def test_answers_that_are_not_taken(start: Start, opened: list[socket.socket], processes: int) -> None:
    service = served(start(processes))
    width = 1_000_000  # a row is 4 MB as bytes
    publish(service, networks.wide(width), "wide", width=width, max_batch=1)
    deploy(service, "wide", "wide@1")
    held, ids = memory_mib(service), pids(service)
    made = others(service)
    ask = request("/predict/wide", ONES, Accept="application/x-npy")
    try:
        connect(service, READERS, opened, small=True)
        most = 0.0
        for one in opened:
            one.sendall(ask)
            most = max(most, memory_mib(service))
        until(lambda: quiet(service, "wide"))
        most = max(most, memory_mib(service))
        first = predict(service, "wide", **{"Accept": "application/x-npy"})
        assert first.status_code == 200
        assert len(first.content) > 4 * width
        told = made.stop()
    finally:
        made.end()
    told.only(200)
    print(
        f"\n{READERS} × 4 MB that nobody takes, memory {held:.0f} → {most:.0f} MiB; "
        f"meanwhile {told.statuses}, slowest {told.worst('good_s', 2):.3f} s"
    )
    assert pids(service) == ids
    # A front keeps 256 MiB of them at most, and as much again is on its way or about to be given back.
    assert most < held + (512 if processes == 1 else 512 * (processes + 1))
    for one in opened:
        one.close()
    until(lambda: memory_mib(service) < held + 256)
    assert "an error that nobody foresaw" not in log_of(service)


def quiet(service: Service, name: str) -> bool:
    """Whether nothing waits for an engine."""
    text = httpx.get(f"{service.url}/metrics", timeout=240).text
    waiting = [line for line in text.splitlines() if line.startswith("nv_inference_pending_request_count{")]
    return all(line.endswith((" 0", " 0.0")) for line in waiting if f'model="{name}"' in line)
