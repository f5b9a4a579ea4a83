"""Servers as process trees: started in a group of their own, paused while others are measured, always ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")
_STOP_S = 15.0


def tree(root: int) -> list[int]:
    """A process and all its living descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return [pid for pid in found if _stat(pid)]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_ms(root: int) -> float:
    """What a tree has used so far, children that have ended included."""
    stats = [_stat(pid) for pid in tree(root)]
    return _TICK_MS * sum(int(field) for fields in stats if fields for field in fields[11:15])


def memory_mb(root: int) -> float | None:
    """Of a whole tree, what its processes share counted once (PSS); None where the system does not tell."""
    total = 0
    for pid in tree(root):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            return None
        total += next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)
    return total / 1024


def resident_mb(pid: int) -> float:
    """RSS of one process. Raises OSError when it is gone."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def find(root: int, *words: str) -> int | None:
    """The process of a tree whose command line holds these words."""
    for pid in tree(root):
        with contextlib.suppress(OSError):
            told = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if all(word in told for word in words):
                return pid
    return None


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on."""
    for _ in range(200):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first: int = probe.getsockname()[1]
        if first + count < 65535 and all(_is_free(first + n) for n in range(count)):
            return first
    raise OSError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Tree:
    """A running command with all its children, in a process group of its own: Ctrl-C reaches the harness alone."""

    def __init__(self, command: list[str], log: Path, cwd: Path, pipes: bool = False) -> None:
        self.log = log
        pipe = subprocess.PIPE if pipes else subprocess.DEVNULL
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env={k: v for k, v in os.environ.items() if not k.startswith("ENGINESMITH_")},
                stdin=pipe,
                stdout=pipe if pipes else out,
                stderr=out,
                start_new_session=True,
                text=True,
            )
        self._seen: dict[int, str] = {}  # pid → when it started: numbers are used again

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def pause(self) -> None:
        """Stops every process of the tree, so that an idle server costs the others nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        pids = tree(self.pid)
        self._seen |= {pid: fields[19] for pid in pids if (fields := _stat(pid))}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def ask_to_end(self) -> None:
        self.resume()
        if self.alive:
            self.process.terminate()

    def end(self) -> None:
        """Politely first; then whatever is left of the tree is killed."""
        self.ask_to_end()
        if self.alive:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._left():  # in sessions of their own: their parent may have told them a moment ago
            time.sleep(0.2)
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()

    def _left(self) -> list[int]:
        now = {pid: _stat(pid) for pid in self._seen if pid != self.pid}
        return [pid for pid, fields in now.items() if fields and fields[0] != "Z" and fields[19] == self._seen[pid]]
