"""Takes this process's rights away, before it opens a stranger's file: network, files, processes, memory.

Call `confine` while the process has one thread and has imported nothing big. Where the kernel or the container refuses
one fence, the others still stand; `Fences` says which do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from app.confinement import landlock, seccomp

Level = Literal["namespaces", "landlock", "files", "network", "none"]

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000
_CAPABILITY_VERSION_3 = 0x20080522
_ADDRESSES = 64 * 2**30  # that libraries reserve and never touch
_STACK = 8 * 2**20

# Libraries, and the little that they ask of a system: no secrets, no devices, no other process.
_SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/nix/store"),
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/timezone", "/etc/mime.types", "/etc/passwd", "/etc/nsswitch.conf"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/filesystems", "/proc/version"),
    *("/proc/sys/vm", "/proc/sys/kernel/osrelease", "/proc/sys/kernel/ostype"),
    *("/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm"),
    *("/dev/urandom", "/dev/random"),
)


@dataclass(frozen=True)
class Fences:
    """What stands around a process. landlock: the ABI in force, or 0; seccomp: why there is none, or None."""

    namespace: bool
    landlock: int
    seccomp: str | None
    capabilities: bool  # whether they are dropped

    @property
    def level(self) -> Level:
        """In one word. namespaces: files and network, the latter by a namespace of its own; landlock: both, the
        network by seccomp; files, network: only these; none: neither."""
        cut = self.namespace or self.seccomp is None
        if self.landlock:
            return "namespaces" if self.namespace else "landlock" if cut else "files"
        return "network" if cut else "none"

    @property
    def strong(self) -> bool:
        """Whether files and network are fenced off both."""
        return self.level in ("namespaces", "landlock")

    def told(self) -> str:
        """For people: the word, and exactly what is in force and what is not."""
        parts = [
            "own network namespace" if self.namespace else "no network namespace",
            f"landlock abi {self.landlock}" if self.landlock else "no landlock",
            "seccomp" if self.seccomp is None else f"no seccomp ({self.seccomp})",
            "capabilities dropped" if self.capabilities else "capabilities kept",
            "limits",
        ]
        return f"{self.level}: {', '.join(parts)}"

    def data(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """memory: bytes of data (RLIMIT_DATA); file: bytes of one file; cpu: seconds, None for any; threads: how many."""

    memory: int
    file: int
    threads: int
    cpu: int | None = None


def confine(
    folder: Path,
    limits: Limits,
    *,
    parent: int | None = None,
    readable: Sequence[Path] = (),
    listed: Sequence[Path] = (),
) -> Fences:
    """This process may from now on write below `folder` only, reach no network and no process, and use so much.

    It reads libraries and what lies below `readable`, and sees which names there are below `listed`. parent: it dies
    with that process.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.suppress(OSError):
        # Should the machine run out of memory in spite of all, this goes first.
        Path("/proc/self/oom_score_adj").write_text("1000")
    libc.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    namespace, of_users = _leave_network(libc)
    if parent is not None:  # after the namespaces, which might forget it
        libc.prctl(_PR_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0)))
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
    abi = landlock.restrict(_grants(folder, readable, listed))
    dropped = _drop_capabilities(libc)
    _limit(resource.RLIMIT_DATA, limits.memory)
    # What that does not count: stacks, and memory that is written and then made read-only. Whoever started us looks.
    _limit(resource.RLIMIT_AS, limits.memory + limits.file + _ADDRESSES)
    _limit(resource.RLIMIT_STACK, _STACK)
    _limit(resource.RLIMIT_FSIZE, limits.file)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, 1024)
    if of_users:
        # Elsewhere it would count all that our user runs; there, whoever started us counts the threads.
        _limit(resource.RLIMIT_NPROC, limits.threads)
    if limits.cpu is not None:
        # The soft limit's SIGXCPU ends the process; the hard one is for whoever ignores it.
        _limit(resource.RLIMIT_CPU, limits.cpu, limits.cpu + 5)
    return Fences(namespace, abi, seccomp.install(os.getpid()), dropped)


def _limit(kind: int, soft: int, hard: int | None = None) -> None:
    allowed = resource.getrlimit(kind)[1]
    hard = soft if hard is None else hard
    if allowed != resource.RLIM_INFINITY:
        soft, hard = min(soft, allowed), min(hard, allowed)
    resource.setrlimit(kind, (soft, hard))


def _leave_network(libc: ctypes.CDLL) -> tuple[bool, bool]:
    """Into a network namespace with no interface; a user namespace first for whoever is not root. (which of both)"""
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWNET | _CLONE_NEWIPC) == 0:
        return True, False
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) != 0:
        return False, False
    with contextlib.suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    return True, True


def _grants(folder: Path, readable: Sequence[Path], listed: Sequence[Path]) -> Iterator[tuple[Path, int]]:
    yield folder, landlock.WRITE
    yield Path("/dev/null"), landlock.WRITE
    for name in _SYSTEM:
        yield Path(name), landlock.READ
    for path in listed:
        yield path, landlock.LIST
    for path in readable:
        # Above the scratch folder lie other people's files: their names may be seen there, not what is in them.
        yield path, landlock.LIST if folder.is_relative_to(path) else landlock.READ


def _drop_capabilities(libc: ctypes.CDLL) -> bool:
    """What root may beyond others; without them the kernel treats it as any user. Whether none is left."""
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    return bool(libc.capset(header, struct.pack("IIIIII", *([0] * 6))) == 0)
