"""What a stranger's file would try, had it taken the process over. Runs inside the real child, nothing is played.

Each attempt either succeeds or raises. `FENCES` says which fences stop it, any one of them being enough.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FENCES: dict[str, set[str]] = {}
_ATTEMPTS: dict[str, Callable[[Any], Any]] = {}
_LIBC = ctypes.CDLL(None, use_errno=True)
_ARM = platform.machine() == "aarch64"


class Place:
    """Where the attempts look: what `outside` holds, ports, processes."""

    def __init__(self, folder: Path, given: dict[str, Any]) -> None:
        self.folder = folder
        self.outside = Path(given["outside"])
        self.port = int(given["port"])
        self.victim = int(given["victim"])
        self.library = Path(given["library"])


def stopped_by(*fences: str) -> Callable[[Callable[[Place], Any]], Callable[[Place], Any]]:
    def keep(attempt: Callable[[Place], Any]) -> Callable[[Place], Any]:
        FENCES[attempt.__name__] = set(fences)
        _ATTEMPTS[attempt.__name__] = attempt
        return attempt

    return keep


def attempts(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """name → None where it succeeded, else what stopped it."""
    place = Place(folder, given)
    return {"tried": {name: _try(attempt, place) for name, attempt in _ATTEMPTS.items()}}


def _try(attempt: Callable[[Place], Any], place: Place) -> str | None:
    try:
        attempt(place)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def call(x86: int, arm: int, *arguments: Any) -> int:
    given = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    found = _LIBC.syscall(ctypes.c_long(arm if _ARM else x86), *given)
    if found < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int(found)


# The network.
@stopped_by("namespace", "seccomp", "landlock 4")
def tcp(place: Place) -> None:
    socket.create_connection(("127.0.0.1", place.port), timeout=2).close()


@stopped_by("namespace", "seccomp")
def udp(place: Place) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to:
        to.sendto(b"x", ("127.0.0.1", place.port))


@stopped_by("namespace", "seccomp")
def name_lookup(place: Place) -> None:
    """As a resolver would, of a server at the default route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to:
        to.connect(("192.0.2.1", 53))
        to.send(b"\0\0\1\0\0\1\0\0\0\0\0\0\1a\0\0\1\0\1")


@stopped_by("seccomp")
def raw_packets(place: Place) -> None:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    finally:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()


@stopped_by("seccomp", "landlock 9")
def unix_socket(place: Place) -> None:
    with socket.socket(socket.AF_UNIX) as to:
        to.connect(str(place.outside / "stream"))


@stopped_by("namespace", "seccomp", "landlock 6")
def abstract_socket(place: Place) -> None:
    with socket.socket(socket.AF_UNIX) as to:
        to.connect(f"\0enginesmith-{place.port}")


@stopped_by("seccomp", "landlock 9")
def unix_socket_from_a_pair(place: Place) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        one.sendto(b"x", str(place.outside / "datagram"))


# Files.
@stopped_by("landlock 1")
def read_a_secret(place: Place) -> None:
    (place.outside / "secret").read_text()


@stopped_by("landlock 1")
def read_beside_modules(place: Place) -> None:
    (place.library / "credentials").read_text()


@stopped_by("landlock 1")
def read_passwords(place: Place) -> None:
    Path("/etc/shadow").read_bytes()


@stopped_by("landlock 1")
def list_outside(place: Place) -> None:
    list(place.outside.iterdir())


@stopped_by("landlock 1")
def write_outside(place: Place) -> None:
    (place.outside / "canary").write_text("x")


@stopped_by("landlock 1")
def change_outside(place: Place) -> None:
    (place.outside / "changed").open("r+").write("y")


@stopped_by("landlock 1")
def remove_outside(place: Place) -> None:
    (place.outside / "removed").unlink()


@stopped_by("landlock 1")
def move_in(place: Place) -> None:
    (place.outside / "moved").rename(place.folder / "moved")


@stopped_by("landlock 3", "seccomp")
def truncate_outside(place: Place) -> None:
    os.truncate(place.outside / "truncated", 0)


@stopped_by("landlock 3", "seccomp")
def empty_a_module(place: Place) -> None:
    os.open(place.library / "module.py", os.O_RDONLY | os.O_TRUNC)


@stopped_by("seccomp")
def change_a_mode(place: Place) -> None:
    (place.outside / "secret").chmod(0o666)


@stopped_by("seccomp")
def change_times(place: Place) -> None:
    os.utime(place.outside / "secret", (0, 0))


@stopped_by("seccomp")
def change_attributes(place: Place) -> None:
    os.setxattr(place.outside / "secret", "user.x", b"x")


@stopped_by("seccomp", "landlock 1")
def leave_a_link(place: Place) -> None:
    try:
        (place.folder / "link").symlink_to(place.outside / "secret")
        (place.folder / "link").unlink()
    finally:
        (place.folder / "hard").hardlink_to(place.outside / "secret")
        (place.folder / "hard").unlink()


@stopped_by("seccomp", "landlock 1")
def leave_a_pipe(place: Place) -> None:
    os.mkfifo(place.folder / "pipe")
    (place.folder / "pipe").unlink()


@stopped_by("landlock 1")
def open_a_device(place: Place) -> None:
    os.open("/dev/zero", os.O_RDONLY)


# Other processes.
@stopped_by("landlock 1")
def environment_of_another(place: Place) -> None:
    Path(f"/proc/{place.victim}/environ").read_bytes()


@stopped_by("landlock 1")
def memory_of_another(place: Place) -> None:
    os.open(f"/proc/{place.victim}/mem", os.O_RDWR)


@stopped_by("landlock 1")
def command_line_of_another(place: Place) -> None:
    Path(f"/proc/{os.getppid()}/cmdline").read_bytes()


@stopped_by("seccomp", "landlock 6")
def signal_another(place: Place) -> None:
    os.kill(place.victim, 0)


@stopped_by("seccomp", "landlock 6")
def signal_our_parent(place: Place) -> None:
    os.kill(os.getppid(), 0)


@stopped_by("seccomp")
def signal_through_a_file(place: Place) -> None:
    reader, writer = os.pipe()
    try:
        fcntl.fcntl(reader, fcntl.F_SETOWN, place.victim)
    finally:
        os.close(reader)
        os.close(writer)


@stopped_by("seccomp")
def signal_through_a_device(place: Place) -> None:
    reader, writer = os.pipe()
    try:
        fcntl.ioctl(reader, 0x8901, struct.pack("i", place.victim))  # FIOSETOWN
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            return  # the kernel has heard it, and knows no such thing of a pipe
        raise
    finally:
        os.close(reader)
        os.close(writer)


@stopped_by("seccomp")
def outlive_our_parent(place: Place) -> None:
    call(157, 167, 1, 0, 0, 0, 0)  # PR_SET_PDEATHSIG


@stopped_by("seccomp")
def pass_a_file_on(place: Place) -> None:
    try:
        call(46, 211, 0, None, 0)  # sendmsg
    except OSError as error:
        if error.errno != errno.EPERM:
            return  # the kernel has looked at it
        raise


@stopped_by("seccomp", "landlock 1")
def trace_another(place: Place) -> None:
    call(101, 117, 0x4206, place.victim, 0, 0)  # PTRACE_SEIZE
    call(101, 117, 17, place.victim, 0, 0)  # PTRACE_DETACH


@stopped_by("seccomp")
def limit_another(place: Place) -> None:
    call(302, 261, place.victim, 7, struct.pack("QQ", 64, 4096), None)


@stopped_by("seccomp")
def place_another(place: Place) -> None:
    os.sched_setaffinity(place.victim, os.sched_getaffinity(0))


@stopped_by("seccomp")
def slow_another(place: Place) -> None:
    os.setpriority(os.PRIO_PROCESS, place.victim, 5)


# Processes and programs of its own.
def _forked(pid: int) -> None:
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


@stopped_by("seccomp")
def fork(place: Place) -> None:
    _forked(os.fork())


@stopped_by("seccomp")
def clone(place: Place) -> None:
    _forked(call(56, 220, signal.SIGCHLD, 0, 0, 0, 0))


@stopped_by("seccomp")
def clone3(place: Place) -> None:
    _forked(call(435, 435, struct.pack("8Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0), 64))


@stopped_by("seccomp")
def start_a_program(place: Place) -> None:
    subprocess.run(["/bin/true"], check=True)


@stopped_by("seccomp", "landlock 1")
def become_a_program(place: Place) -> None:
    """Of a file that is none: the kernel that tries says so."""
    handle = os.open(place.folder / "program", os.O_WRONLY | os.O_CREAT, 0o755)
    os.write(handle, b"no program")
    os.close(handle)
    try:
        os.execv(place.folder / "program", ["program"])
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise


# The kernel's less worn paths.
@stopped_by("seccomp")
def new_namespaces(place: Place) -> None:
    call(272, 97, 0x10000000)


@stopped_by("seccomp")
def io_uring(place: Place) -> None:
    os.close(call(425, 425, 1, ctypes.create_string_buffer(256)))


@stopped_by("seccomp")
def memory_in_a_file(place: Place) -> None:
    os.close(os.memfd_create("x"))


@stopped_by("seccomp")
def shared_memory(place: Place) -> None:
    mmap.mmap(-1, 4096).close()


@stopped_by("seccomp")
def shared_memory_of_system_v(place: Place) -> None:
    call(29, 194, 0, 4096, 0o600)


@stopped_by("seccomp")
def a_stack_that_grows(place: Place) -> None:
    mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100).close()


@stopped_by("seccomp")
def keys_of_the_kernel(place: Place) -> None:
    call(250, 219, 0, -3, 1)


# Alone in their child: they end it, or are meant to.
def another_architecture(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """32-bit x86's calls have other numbers: getpid by `int 0x80`."""
    page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
    page.write(bytes.fromhex("b814000000cd80c3"))
    where = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return {"pid": ctypes.CFUNCTYPE(ctypes.c_int)(where)()}


def x32(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    return {"pid": _LIBC.syscall(ctypes.c_long(0x40000000 + 39))}


def fork_bomb(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    while True:
        os.fork()


def thread_bomb(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    threading.stack_size(32768)
    forever = threading.Event()
    while True:
        threading.Thread(target=forever.wait, daemon=True).start()


def memory_made_read_only(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """RLIMIT_DATA counts what may be written."""
    mprotect, held = _LIBC.mprotect, []
    while True:
        part = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for at in range(0, 64 << 20, 4096):
            part[at] = 1
        where = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(part)))
        if mprotect(where, ctypes.c_size_t(64 << 20), 1) != 0:
            return {"refused": len(held)}
        held.append(part)


def sleep(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    time.sleep(600)
    return {}


def complain(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    while True:
        os.write(2, bytes(1 << 20))


def leave_a_child(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """One that outlives us, where it may be forked."""
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
    return {"pid": pid}


def link_to_a_secret(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    (folder / "model.safetensors").symlink_to(given["secret"])
    return {}


def open_files(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """What this process inherited."""
    found = []
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):  # the listing's own
            found.append(str(Path(f"/proc/self/fd/{number}").readlink()))
    return {"files": found}
