"""Runs one sandboxed task as on a kernel, or in a container, that lacks some of the fences.

For that, a filter refuses the calls that put them up, and every child inherits it.

argv: what is lacking, with commas; the task; the folder; the arguments as JSON. Prints the answer, or the problem.
"""

from __future__ import annotations

import ctypes
import errno
import json
import platform
import sys
from pathlib import Path

from app.confinement import seccomp
from app.confinement.calls import REFUSED, SECCOMP
from app.errors import Problem
from app.settings import Settings
from workers.load import sandbox

LACKING = {
    "landlock": {(444, 444): errno.ENOSYS},
    "seccomp": {SECCOMP: errno.ENOSYS},
    "namespace": {REFUSED["unshare"]: errno.EPERM},
}


def main() -> None:
    lacking, task, folder, arguments = sys.argv[1:]
    column = ("x86_64", "aarch64").index(platform.machine())
    steps = seccomp.head(platform.machine())
    for name in filter(None, lacking.split(",")):
        for numbers, error in LACKING[name].items():
            steps += seccomp.on(numbers[column], seccomp.refuse(error))
    ctypes.CDLL(None).prctl(38, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    assert seccomp.apply([*steps, *seccomp.ALLOW]) is None
    try:
        found = sandbox.run(task, Path(folder), json.loads(arguments), Settings(threads=1))
    except Problem as problem:
        found = {"problem": problem.body()}
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
