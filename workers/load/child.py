"""The sandboxed process: reads one request, takes its own rights away, does one task, writes one answer.

The request and the answer are JSON. Nothing big is imported before the fences stand; which of them do is told in a line
of its own before the stranger's file is opened, because after that nothing said here can be trusted.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from app.confinement import child
from app.confinement.fences import Limits, confine

MAX_REQUEST = 256 * 1024 * 1024


def probe(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Does nothing: how far the fences reach is what is asked."""
    return {}


def main() -> None:
    """Reads `{"task", "folder", "arguments", "limits", "parent"}` on stdin; answers on the descriptor in argv."""
    answer = int(sys.argv[1])
    request = json.loads(sys.stdin.buffer.read(MAX_REQUEST))
    folder = Path(request["folder"])
    limits = Limits(**request["limits"])
    fences = confine(folder, limits, parent=request["parent"], readable=child.code(), listed=child.names())
    _write(answer, fences.data())
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    # A file over its limit is an OSError, not a silent death.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    found: dict[str, Any] = {}
    try:
        module, _, name = request["task"].partition(":")
        found["result"] = getattr(importlib.import_module(module), name)(folder, request["arguments"])
    except Exception as error:
        found["problem"] = _body(error)
    _write(answer, found)
    # Native libraries may crash while they are taken down; the answer is out.
    os._exit(0)


def _write(pipe: int, found: dict[str, Any]) -> None:
    left = memoryview(json.dumps(found, allow_nan=False).encode() + b"\n")
    while left:
        left = left[os.write(pipe, left) :]


def _body(error: Exception) -> dict[str, Any]:
    from app.errors import BadCheckpoint, InsufficientStorage, Problem

    if isinstance(error, Problem):
        return error.body()
    said = str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in said or "bad_alloc" in said:
        return BadCheckpoint(
            "loading it needs more memory than the sandbox may use",
            code="too_much_memory",
            hint="raise ENGINESMITH_SANDBOX_MEMORY_BYTES on the worker, if the model is really that large",
        ).body()
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in said:
        return InsufficientStorage("the disk is full", hint="free some space, then try again").body()
    if isinstance(error, RecursionError):
        return BadCheckpoint("it is nested too deeply to be a model").body()
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return BadCheckpoint(
            "unpacking it writes a file larger than the sandbox may",
            hint="raise ENGINESMITH_SANDBOX_FILE_BYTES on the worker, if the model is really that large",
        ).body()
    return BadCheckpoint(f"it could not be loaded: {type(error).__name__}: {said[:500]}").body()


if __name__ == "__main__":
    main()
