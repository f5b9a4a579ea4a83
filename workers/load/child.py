"""The sandboxed process: reads one request, takes its own rights away, does one task, writes one answer.

The request and the answer are JSON. Nothing big is imported before the fences stand.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from workers.load.confine import confine

MAX_REQUEST = 256 * 1024 * 1024


def probe(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Does nothing: how far the fences reach is what is asked."""
    return {}


def main() -> None:
    """Reads `{"task", "folder", "arguments", "limits", "parent"}` on stdin; answers on the descriptor in argv."""
    answer = int(sys.argv[1])
    request = json.loads(sys.stdin.buffer.read(MAX_REQUEST))
    folder = Path(request["folder"])
    isolation = confine(folder, **request["limits"], parent=request["parent"], readable=_code())
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    # A file over its limit is an OSError, not a silent death.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    found: dict[str, Any] = {"isolation": isolation}
    try:
        module, _, name = request["task"].partition(":")
        found["result"] = getattr(importlib.import_module(module), name)(folder, request["arguments"])
    except Exception as error:
        found["problem"] = _body(error)
    data = json.dumps(found, allow_nan=False).encode()
    with os.fdopen(answer, "wb") as pipe:
        pipe.write(data)
    # Native libraries may crash while they are taken down; the answer is out.
    os._exit(0)


def _code() -> list[Path]:
    """Where modules come from: every place that Python searches, and our own packages."""
    packages = [importlib.util.find_spec(name) for name in ("app", "workers", "enginesmith")]
    homes = [Path(p) for spec in packages if spec for p in spec.submodule_search_locations or ()]
    return [*(Path(p) for p in sys.path if p), *homes]


def _body(error: Exception) -> dict[str, Any]:
    from app.errors import BadCheckpoint, Problem

    if isinstance(error, Problem):
        return error.body()
    said = str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in said or "bad_alloc" in said:
        return BadCheckpoint(
            "loading it needs more memory than the sandbox may use",
            code="too_much_memory",
            hint="raise ENGINESMITH_SANDBOX_MEMORY_BYTES on the worker, if the model is really that large",
        ).body()
    if isinstance(error, RecursionError):
        return BadCheckpoint("it is nested too deeply to be a model").body()
    if isinstance(error, OSError) and error.errno == 27:
        return BadCheckpoint(
            "unpacking it writes a file larger than the sandbox may",
            hint="raise ENGINESMITH_SANDBOX_FILE_BYTES on the worker, if the model is really that large",
        ).body()
    return BadCheckpoint(f"it could not be loaded: {type(error).__name__}: {said[:500]}").body()


if __name__ == "__main__":
    main()
