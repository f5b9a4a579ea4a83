"""A filter of system calls: whoever has it on cannot take it off, nor can anything that it starts.

Written after the kernel's Documentation/userspace-api/seccomp_filter.rst. The filter is a program of classic BPF: it
looks at the number of a call and at its plain arguments, never at memory. Own code, because libseccomp is no part of
every system and its bindings need it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence

from app.confinement.calls import JUDGED, REFUSED, SECCOMP

# AUDIT_ARCH_* of linux/audit.h, and the column of `calls`.
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_X32 = 0x40000000  # the numbers of x86-64's other calls begin here
_SET_MODE_FILTER, _FILTER_FLAG_TSYNC = 1, 1

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # where they lie in struct seccomp_data
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000  # SECCOMP_RET_*

_CLONE_THREAD = 0x10000
_MAP_SHARED, _MAP_ANONYMOUS, _MAP_GROWSDOWN = 0x01, 0x20, 0x100
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX = 8, 10, 15  # a signal to any process, by way of a file
_O_ACCMODE, _O_TRUNC = 0b11, 0x200
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # keys pressed at somebody's terminal
_FIOSETOWN, _SIOCSPGRP = 0x8901, 0x8902  # F_SETOWN once more, of sockets
_PR_SET_PDEATHSIG = 1  # to outlive whoever started it

Step = tuple[int, int, int, int]  # operation, jump if true, jump if false, operand
ALLOW: list[Step] = [(_RETURN, 0, 0, _ALLOW)]


def install(own: int) -> str | None:
    """Puts the filter on every thread of this process, whose number is `own`; why not, where the kernel has none.

    Needs no_new_privs.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES or struct.calcsize("P") != 8:
        return f"not written for {machine} with {8 * struct.calcsize('P')} bits"
    return apply(program(machine, own))


def program(machine: str, own: int) -> list[Step]:
    """The filter for an architecture. Whatever it does not name is allowed."""
    column = _ARCHITECTURES[machine][1]
    steps = head(machine)
    if machine == "x86_64":
        steps += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for numbers in REFUSED.values():
        steps += on(numbers[column], refuse(errno.EPERM))
    for name, body in _judgements(own).items():
        steps += on(JUDGED[name][column], body)
    return [*steps, *ALLOW]


def apply(steps: Sequence[Step]) -> str | None:
    """Puts a program on; the kernel's reason where it refuses."""
    column = _ARCHITECTURES[platform.machine()][1]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    call = (ctypes.c_long(n) for n in (SECCOMP[column], _SET_MODE_FILTER, _FILTER_FLAG_TSYNC))
    done = libc.syscall(*call, ctypes.byref(head))
    if done == 0:
        return None
    return os.strerror(ctypes.get_errno()).lower() if done < 0 else "a thread could not be given it"


def on(number: int | None, body: Sequence[Step]) -> list[Step]:
    """`body` for one call. It must return on every way: after it the number is not loaded again."""
    return [] if number is None else [(_EQUAL, 0, len(body), number), *body]


def refuse(error: int) -> list[Step]:
    return [(_RETURN, 0, 0, _ERRNO | error)]


def head(machine: str) -> list[Step]:
    """Loads the number of the call. Those of another architecture have other numbers: nobody honest makes them."""
    architecture = _ARCHITECTURES[machine][0]
    checked = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    return [*checked, (_LOAD, 0, 0, _NUMBER)]


def _judgements(own: int) -> dict[str, list[Step]]:
    """Calls that honest libraries make too: what of them passes."""
    at_itself = _if_argument(0, [(_EQUAL, own)])
    at_itself_or_unnamed = _if_argument(0, [(_EQUAL, own), (_EQUAL, 0)])
    return {
        # Threads, and nothing that lives on its own. clone3 has its flags in memory: glibc falls back to clone.
        "clone": _if_argument(0, [(_ANY_BIT, _CLONE_THREAD)]),
        "clone3": refuse(errno.ENOSYS),
        # Shared memory without a file, and stacks that grow: RLIMIT_DATA counts neither.
        "mmap": [
            (_LOAD, 0, 0, _argument(3)),
            (_ANY_BIT, 3, 0, _MAP_GROWSDOWN),
            *_unless_bits(_MAP_SHARED | _MAP_ANONYMOUS, _MAP_SHARED | _MAP_ANONYMOUS),
        ],
        # To read and empty at once, which Landlock takes for reading before ABI 3. openat2 has its flags in memory.
        "open": [(_LOAD, 0, 0, _argument(1)), *_unless_bits(_O_ACCMODE | _O_TRUNC, _O_TRUNC)],
        "openat": [(_LOAD, 0, 0, _argument(2)), *_unless_bits(_O_ACCMODE | _O_TRUNC, _O_TRUNC)],
        "openat2": refuse(errno.ENOSYS),
        "kill": at_itself,
        "tgkill": at_itself,
        "rt_sigqueueinfo": at_itself,
        "rt_tgsigqueueinfo": at_itself,
        "prlimit64": at_itself_or_unnamed,
        "sched_setaffinity": at_itself_or_unnamed,
        "setpriority": refuse(errno.EPERM),
        "fcntl": _unless_argument(1, [(_EQUAL, _F_SETOWN), (_EQUAL, _F_SETSIG), (_EQUAL, _F_SETOWN_EX)]),
        "ioctl": _unless_argument(1, [(_EQUAL, of) for of in (_TIOCSTI, _TIOCLINUX, _FIOSETOWN, _SIOCSPGRP)]),
        "prctl": _unless_argument(0, [(_EQUAL, _PR_SET_PDEATHSIG)]),
    }


def _unless_bits(mask: int, value: int) -> list[Step]:
    """Refused where the bits of the mask are these, in what is loaded."""
    return [(_AND, 0, 0, mask), (_EQUAL, 1, 0, value), (_RETURN, 0, 0, _ALLOW), *refuse(errno.EPERM)]


def _if_argument(place: int, tests: Sequence[tuple[int, int]]) -> list[Step]:
    """Allowed where one of the tests holds of the argument's lower half."""
    return _by_argument(place, tests, hit=ALLOW, miss=refuse(errno.EPERM))


def _unless_argument(place: int, tests: Sequence[tuple[int, int]]) -> list[Step]:
    return _by_argument(place, tests, hit=refuse(errno.EPERM), miss=ALLOW)


def _by_argument(
    place: int, tests: Sequence[tuple[int, int]], *, hit: Sequence[Step], miss: Sequence[Step]
) -> list[Step]:
    """`miss` is one step: the jumps go over it."""
    steps = [(operation, len(tests) - i, 0, operand) for i, (operation, operand) in enumerate(tests)]
    return [(_LOAD, 0, 0, _argument(place)), *steps, *miss, *hit]


def _argument(place: int) -> int:
    """Both architectures have the lower half first."""
    return _ARGUMENTS + 8 * place
