"""An S3 server over real HTTP (moto's, a process of its own), and a proxy in front of it that fails as networks do."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

# A number: the server says so. drop: the connection ends before anything is done. lose: it is done, and nobody hears.
# cut: half of the answer's body comes. hang: nothing comes at all.
Trouble = Literal["403", "409", "500", "503", "507", "drop", "lose", "cut", "hang"]
# Threads in moto change hands where they wait, and nowhere else: it looks whether an object is there and puts it in two
# steps, which S3 does in one.
_SERVE = "import sys; sys.setswitchinterval(60); from moto.server import main; main(['-p', '0'])"


@dataclass(frozen=True)
class S3:
    """A running server."""

    url: str

    @property
    def environ(self) -> dict[str, str]:
        """What tells obstore where it is and who asks, in production too."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "enginesmith",
            "AWS_SECRET_ACCESS_KEY": "enginesmith",
        }

    def bucket(self) -> str:
        """The name of a new one."""
        name = f"bucket-{uuid.uuid4().hex}"
        self._ask("PUT", f"/{name}")
        return name

    def parts(self, bucket: str) -> list[str]:
        """The keys of multipart uploads that nobody has ended."""
        return [
            unquote(key) for key in re.findall(r"<Upload>\s*<Key>(.*?)</Key>", self._ask("GET", f"/{bucket}?uploads"))
        ]

    def _ask(self, method: str, path: str) -> str:
        with contextlib.closing(HTTPConnection(urlsplit(self.url).netloc, timeout=60)) as line:
            line.request(method, path, b"")
            answer = line.getresponse()
            text = answer.read().decode()
            assert answer.status == 200, text
            return text


@contextlib.contextmanager
def running_s3(folder: Path) -> Iterator[S3]:
    """Starts one on a free port."""
    log = folder / "moto.log"
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", _SERVE], stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"Running on (http://127\.0\.0\.1:\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield S3(found[1])
    finally:
        process.kill()
        process.wait()


@dataclass
class Proxy:
    """Passes everything on to the server, and makes trouble. trouble: what befalls the request of that number."""

    to: S3
    trouble: Callable[[int, str, str], Trouble | None] = lambda number, method, path: None
    seen: list[tuple[str, str, Trouble | None]] = field(default_factory=list)
    url: str = ""

    @property
    def s3(self) -> S3:
        """The server as it is seen through this."""
        return S3(self.url)

    @contextlib.contextmanager
    def running(self) -> Iterator[Proxy]:
        numbers, over = itertools.count(1), threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                trouble = proxy.trouble(next(numbers), self.command, self.path)
                proxy.seen.append((self.command, self.path, trouble))
                if trouble == "hang":
                    over.wait()
                if trouble in ("drop", "hang"):
                    return self.reset()
                if trouble and trouble.isdecimal():
                    return self.answer(int(trouble), {}, b"<Error><Code>Trouble</Code></Error>")
                with contextlib.closing(HTTPConnection(urlsplit(proxy.to.url).netloc)) as line:
                    line.request(self.command, self.path, body, dict(self.headers))
                    answer = line.getresponse()
                    found = answer.read()
                if trouble == "lose":
                    return self.reset()
                return self.answer(answer.status, dict(answer.getheaders()), found, cut=trouble == "cut")

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on  # noqa: N815

            def answer(self, status: int, headers: dict[str, str], body: bytes, cut: bool = False) -> None:
                self.send_response_only(status)
                length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
                dropped = ("content-length", "transfer-encoding", "connection")
                for name, value in headers.items():
                    if name.lower() not in dropped:
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else body[: len(body) // 2] if cut else body)
                if cut:
                    self.wfile.flush()
                    time.sleep(0.05)
                    self.reset()

            def reset(self) -> None:
                self.close_connection = True
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:  # a connection that was reset, by either side
                pass

        server = Server(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            over.set()
            server.shutdown()
            thread.join()
            server.server_close()
