"""Takes this process's rights away, before it opens a stranger's file: network, files, memory. Standard library only.

Call `confine` while the process has one thread and has imported nothing big. Where the kernel or the container refuses
one fence, the others still stand; the answer says which level was reached.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

Isolation = Literal["namespaces", "landlock", "none"]

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
# Landlock's rights over files that change something: writing, removing, making, renaming, truncating.
_FS_EXECUTE, _FS_WRITE_FILE, _FS_READ_FILE, _FS_READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_FS_READ = _FS_EXECUTE | _FS_READ_FILE | _FS_READ_DIR
_FS_WRITE = _FS_WRITE_FILE | sum(1 << n for n in range(4, 13))
_FS_REFER, _FS_TRUNCATE = 1 << 13, 1 << 14
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc", "/nix/store", "/proc", "/sys", "/dev")
_NET_BIND_AND_CONNECT = 0b11
_SCOPE_SOCKETS_AND_SIGNALS = 0b11


def confine(
    folder: Path, *, memory: int, file: int, cpu: int, parent: int | None = None, readable: Sequence[Path] = ()
) -> Isolation:
    """This process may from now on write below `folder` only, reach no network, and use so much.

    It reads the system, Python, and what lies below `readable`.
    memory: bytes of data (RLIMIT_DATA); file: bytes of one file; cpu: seconds. parent: dies with that process.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if parent is not None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    alone = _leave_network(libc)
    fenced = _landlock(libc, folder, readable)
    _drop_capabilities(libc)
    _no_sockets(libc)
    _limit(resource.RLIMIT_DATA, memory)
    _limit(resource.RLIMIT_FSIZE, file)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, 1024)
    # The soft limit's SIGXCPU ends the process; the hard one is for whoever ignores it.
    _limit(resource.RLIMIT_CPU, cpu, cpu + 5)
    return "namespaces" if alone else "landlock" if fenced else "none"


def _limit(kind: int, soft: int, hard: int | None = None) -> None:
    allowed = resource.getrlimit(kind)[1]
    hard = soft if hard is None else hard
    if allowed != resource.RLIM_INFINITY:
        soft, hard = min(soft, allowed), min(hard, allowed)
    resource.setrlimit(kind, (soft, hard))


def _leave_network(libc: ctypes.CDLL) -> bool:
    """Into a network namespace with no interface; a user namespace first for whoever is not root."""
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWNET | _CLONE_NEWIPC) == 0:
        return True
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) != 0:
        return False
    with contextlib.suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    return True


def _landlock(libc: ctypes.CDLL, folder: Path, readable: Sequence[Path]) -> bool:
    """Writing below `folder` only, reading only there and where code lies; no TCP, no signals to others."""
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return False
    rights = _FS_READ | _FS_WRITE | (_FS_REFER if version >= 2 else 0) | (_FS_TRUNCATE if version >= 3 else 0)
    attributes = struct.pack(
        "QQQ", rights, _NET_BIND_AND_CONNECT if version >= 4 else 0, _SCOPE_SOCKETS_AND_SIGNALS if version >= 6 else 0
    )[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = libc.syscall(_LANDLOCK_CREATE, attributes, len(attributes), 0)
    if rules < 0:
        return False
    try:
        for path, granted in _grants(folder, readable, rights):
            try:
                handle = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if path.name == "null" else os.O_DIRECTORY))
            except OSError:
                continue
            try:
                rule = struct.pack("=Qi", granted, handle)
                if libc.syscall(_LANDLOCK_ADD, rules, 1, rule, 0) != 0:
                    return False
            finally:
                os.close(handle)
        return bool(libc.syscall(_LANDLOCK_RESTRICT, rules, 0) == 0)
    finally:
        os.close(rules)


def _grants(folder: Path, readable: Sequence[Path], rights: int) -> Iterator[tuple[Path, int]]:
    yield folder, rights
    yield Path("/dev/null"), rights & (_FS_READ_FILE | _FS_WRITE_FILE | _FS_TRUNCATE)
    for name in _SYSTEM:
        yield Path(name), _FS_READ
    for path in (*map(Path, (sys.prefix, sys.base_prefix, sys.exec_prefix, "/opt")), *readable):
        # Above the scratch folder lie other people's files: their names may be seen there, not what is in them.
        yield path, _FS_READ_DIR if folder.is_relative_to(path) else _FS_READ


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """What root may beyond others; without them the kernel treats it as any user."""
    header = struct.pack("Ii", 0x20080522, 0)
    libc.capset(header, struct.pack("IIIIII", *([0] * 6)))


def _no_sockets(libc: ctypes.CDLL) -> None:
    """A filter under which `socket` fails: Unix sockets live in files, which no network namespace hides."""
    call = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}.get(platform.machine())
    if call is None:
        return
    architecture, number = call
    io_uring = 425  # opens sockets without the call
    deny = 0x00050000 | 13  # SECCOMP_RET_ERRNO, EACCES
    steps = (
        (0x20, 0, 0, 4),  # load the architecture
        (0x15, 0, 4, architecture),  # another one: allow, its numbers differ
        (0x20, 0, 0, 0),  # load the number of the call
        (0x15, 1, 0, io_uring),
        (0x15, 0, 1, number),
        (0x06, 0, 0, deny),
        (0x06, 0, 0, 0x7FFF0000),  # allow
    )
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    head = struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(program))
    libc.prctl(_PR_SET_SECCOMP, 2, ctypes.c_char_p(head), 0, 0)
