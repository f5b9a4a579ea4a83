"""`serve` is told to end while clients go on: what runs is answered, who comes later is refused; and a crash of the app
alone refuses nobody."""

from __future__ import annotations

import contextlib
import signal
import socket
from pathlib import Path

import httpx
import psutil
import pytest
from running import Service, start_service, until

BODY = b'{"inputs": [[1]]}'
HEAD = b"POST /predict/nothing HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def connected(service: Service) -> socket.socket:
    url = httpx.URL(service.url)
    return socket.create_connection((url.host, url.port or 80), timeout=120)


def refused(service: Service) -> bool:
    try:
        connected(service).close()
    except ConnectionRefusedError:
        return True
    return False


def fronts(service: Service) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(service.process.pid).children():
        with contextlib.suppress(psutil.Error):
            if "http" in process.cmdline()[3:4]:
                found.append(process)
    return found


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_end_of_the_service(tmp_path: Path, count: int) -> None:
    service = start_service(tmp_path, workers=0, arguments=("--http-processes", str(count)))
    try:
        # The app crashes: who connects meanwhile waits for the next one, which takes the socket over.
        if count == 1:
            (victim,) = fronts(service)
            victim.send_signal(signal.SIGKILL)
            victim.wait(60)
            with connected(service) as early:
                early.sendall(b"GET /healthz/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert early.recv(15) == b"HTTP/1.1 200 OK"

        # A request that is being taken in holds the end up.
        with connected(service) as running, connected(service) as idle:
            running.sendall(HEAD % len(BODY) + BODY[:5])
            idle.sendall(b"GET /healthz/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert idle.recv(15) == b"HTTP/1.1 200 OK"
            service.process.send_signal(signal.SIGTERM)
            until(lambda: refused(service))
            while idle.recv(65536):
                pass
            running.sendall(BODY[5:])
            answer = b""
            while more := running.recv(65536):
                answer += more
            assert answer.startswith(b"HTTP/1.1 404")
            assert b"connection: close" in answer
    finally:
        assert service.stop() == 0
