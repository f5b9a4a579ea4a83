"""Opens strangers' files in a child process that has a scratch folder, a pipe and nothing else. No torch here."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

from app.errors import BadCheckpoint, Internal, from_body
from app.settings import Settings
from workers.load.confine import Isolation

MAX_ANSWER = 64 * 1024 * 1024
# Beyond its CPU time a child may wait for a disk so long, in seconds.
_PATIENCE_S = 120
# What a child sees of our environment: no addresses, no keys, no proxies.
_KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TZ", "OMP_NUM_THREADS", "SSL_CERT_FILE")


def run(task: str, folder: Path, arguments: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The answer of one task, with `isolation` beside what it found.

    task: "module:function", where function(folder, arguments) returns JSON data. folder: the scratch folder, the only
    place where the child may write. Raises the Problem that the child met, or BadCheckpoint for one that crashed, or
    ran out of memory or time.
    """
    folder = folder.absolute()
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    request = {
        "task": task,
        "folder": str(folder),
        "arguments": arguments,
        "parent": os.getpid(),
        "limits": {
            "memory": settings.sandbox_memory_bytes,
            "file": settings.sandbox_file_bytes,
            "cpu": settings.sandbox_cpu_s,
        },
    }
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as said:
        try:
            child = subprocess.Popen(
                # -P: never look for modules in the working directory, which holds a stranger's files.
                [sys.executable, "-P", "-m", "workers.load.child", str(writer)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=said,
                pass_fds=(writer,),
                cwd=folder,
                env=_environment(folder, settings),
                start_new_session=True,
            )
        except OSError as error:
            os.close(reader)
            raise Internal(f"the sandbox could not be started: {error}") from error
        finally:
            os.close(writer)
        try:
            data = _converse(child, reader, json.dumps(request).encode(), settings.sandbox_cpu_s + _PATIENCE_S)
        finally:
            os.close(reader)
            _end(child)
        said.seek(max(0, said.seek(0, os.SEEK_END) - 4000))
        last_words = said.read().decode(errors="replace")
    return _answer(child.returncode, data, last_words, settings)


@cache
def isolation() -> Isolation:
    """How far the fences reach on this machine. Asked once per process; takes a tenth of a second."""
    with tempfile.TemporaryDirectory(prefix="enginesmith-probe-") as folder:
        try:
            found: Isolation = run("workers.load.child:probe", Path(folder), {}, Settings(sandbox_cpu_s=30))[
                "isolation"
            ]
        except Exception:
            return "none"
    return found


def _environment(folder: Path, settings: Settings) -> dict[str, str]:
    threads = str(settings.threads or 1)
    return {k: os.environ[k] for k in _KEPT if k in os.environ} | {
        "PYTHONPATH": os.pathsep.join(str(Path(p).absolute()) for p in sys.path if p),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "OMP_NUM_THREADS": threads,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def _converse(child: subprocess.Popen[bytes], reader: int, request: bytes, patience: float) -> bytes:
    assert child.stdin is not None
    try:
        child.stdin.write(request)
        child.stdin.close()
    except BrokenPipeError:
        pass
    found = bytearray()
    deadline = time.monotonic() + patience
    with selectors.DefaultSelector() as waiting:
        waiting.register(reader, selectors.EVENT_READ)
        while True:
            if not waiting.select(max(0.0, deadline - time.monotonic())):
                raise BadCheckpoint(f"loading it took longer than {patience:.0f} seconds", code="too_slow")
            part = os.read(reader, 1 << 20)
            if not part:
                return bytes(found)
            found += part
            if len(found) > MAX_ANSWER:
                raise BadCheckpoint("what the sandbox found in it is too large to be told")


def _end(child: subprocess.Popen[bytes]) -> None:
    """Waits for a child that has answered, and kills one that has not, with everything it started."""
    if child.stdin is not None and not child.stdin.closed:
        child.stdin.close()
    try:
        child.wait(timeout=5 if child.poll() is None else 0)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _answer(code: int, data: bytes, last_words: str, settings: Settings) -> dict[str, Any]:
    try:
        found = json.loads(data) if data else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise _death(code, last_words, settings)
    if "problem" in found:
        raise from_body(found["problem"])
    result = found.get("result")
    if not isinstance(result, dict):
        raise _death(code, last_words, settings)
    return result | {"isolation": found["isolation"]}


def _death(code: int, last_words: str, settings: Settings) -> BadCheckpoint | Internal:
    memory = f"{settings.sandbox_memory_bytes / 2**30:.1f} GiB"
    if code == -signal.SIGXCPU:
        return BadCheckpoint(
            f"loading it used more than {settings.sandbox_cpu_s} seconds of CPU time",
            code="too_slow",
            hint="raise ENGINESMITH_SANDBOX_CPU_S on the worker, if the model is really that large",
        )
    if "MemoryError" in last_words or "bad_alloc" in last_words or "can't allocate memory" in last_words:
        return BadCheckpoint(
            f"loading it needs more than the {memory} of memory that the sandbox may use",
            code="too_much_memory",
            hint="raise ENGINESMITH_SANDBOX_MEMORY_BYTES on the worker, if the model is really that large",
        )
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return BadCheckpoint(
            f"the process that opened it was ended by {name}: the file crashes a library, or needs more than {memory}",
            code="sandbox_crashed",
            hint="check that the file loads on your own machine",
        )
    lines = last_words.strip().splitlines()
    return Internal(f"the sandbox gave no answer (exit code {code}): {lines[-1][:300] if lines else 'it said nothing'}")
