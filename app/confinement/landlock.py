"""Landlock: a process names the files that it will need, and the kernel shows it no others ever after.

Written after the kernel's Documentation/userspace-api/landlock.rst. Every kernel has the rights of its own version
(ABI) only; what a kernel does not know yet is left out. Own code: three calls and a table.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_CREATE_VERSION, _PATH_BENEATH = 1, 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_REFER, _TRUNCATE = 1 << 13, 1 << 14
# ABI → the rights over files that it brought: files and folders of every kind; moving between folders; truncating;
# calls to devices; sockets that lie in files.
_SINCE = {1: (1 << 13) - 1, 2: _REFER, 3: _TRUNCATE, 5: 1 << 15, 9: 1 << 16}
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE

READ = _READ_FILE | _READ_DIR
LIST = _READ_DIR
# No devices, sockets, pipes or links; and programs are nowhere started.
WRITE = READ | _WRITE_FILE | _TRUNCATE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER

_BIND_AND_CONNECT_TCP = 0b11
_SOCKETS_AND_SIGNALS = 0b11


def version() -> int:
    """The ABI that the kernel speaks; 0 where it has none, or the container forbids it."""
    return max(0, _syscall(_CREATE, None, 0, _CREATE_VERSION))


def restrict(grants: Iterable[tuple[Path, int]]) -> int:
    """This process reaches these paths, and what lies below them, for that; the ABI in force, or 0.

    Beyond files: no TCP from ABI 4 on, no signals and no abstract sockets of others from 6 on. A path that is not
    there is passed over. Needs no_new_privs, and one thread.
    """
    spoken = version()
    if not spoken:
        return 0
    rights = 0
    for since, brought in _SINCE.items():
        rights |= brought if spoken >= since else 0
    attributes = struct.pack("QQQ", rights, _BIND_AND_CONNECT_TCP, _SOCKETS_AND_SIGNALS)
    attributes = attributes[: 8 if spoken < 4 else 16 if spoken < 6 else 24]
    rules = _syscall(_CREATE, attributes, len(attributes), 0)
    if rules < 0:
        return 0
    try:
        for path, granted in grants:
            if not _grant(rules, path, granted & rights):
                return 0
        return spoken if _syscall(_RESTRICT, rules, 0) == 0 else 0
    finally:
        os.close(rules)


def _grant(rules: int, path: Path, rights: int) -> bool:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            rights &= _OF_FILES
        return rights == 0 or _syscall(_ADD, rules, _PATH_BENEATH, struct.pack("=Qi", rights, handle), 0) == 0
    finally:
        os.close(handle)


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    given = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    return int(libc.syscall(ctypes.c_long(number), *given))
