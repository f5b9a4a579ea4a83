"""Opens strangers' files in a child process that has a scratch folder, a pipe and nothing else. No torch here."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import IO, Any

from app.confinement import child as confined
from app.confinement.fences import Fences
from app.confinement.watch import PERIOD_S, Watch
from app.errors import BadCheckpoint, InsufficientStorage, Internal, from_body
from app.settings import Settings

log = logging.getLogger("enginesmith.sandbox")

MAX_ANSWER = 64 * 1024 * 1024
# Beyond its CPU time a child may wait for a disk so long, in seconds.
_PATIENCE_S = 120
# How long it may take to end once it has answered, in seconds.
_FAREWELL_S = 1.0
_FULL = 1024 * 1024  # bytes that are free on a disk on which a file of any size may not have had room
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def run(task: str, folder: Path, arguments: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The answer of one task, with `isolation` beside what it found: which fences stood, in words.

    task: "module:function", where function(folder, arguments) returns JSON data. folder: the scratch folder, the only
    place where the child may write. Raises the Problem that the child met, or BadCheckpoint for one that crashed, or
    ran out of memory or time.
    """
    fences, result = _run(task, folder, arguments, settings)
    return result | {"isolation": fences.told()}


def _run(task: str, folder: Path, arguments: dict[str, Any], settings: Settings) -> tuple[Fences, dict[str, Any]]:
    folder = folder.absolute()
    environment = confined.environment(folder, settings.threads or 1) | _OFFLINE
    request = {
        "task": task,
        "folder": str(folder),
        "arguments": arguments,
        "parent": os.getpid(),
        "limits": {
            "memory": settings.sandbox_memory_bytes,
            "file": settings.sandbox_file_bytes,
            "cpu": settings.sandbox_cpu_s,
            "threads": confined.most_threads(),
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
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            os.close(reader)
            raise Internal(f"the sandbox could not be started: {error}") from error
        finally:
            os.close(writer)
        patience = 0.0
        try:
            watch = Watch(child.pid, settings.sandbox_memory_bytes, settings.sandbox_cpu_s + _PATIENCE_S)
            data = _converse(child, reader, said, json.dumps(request).encode(), watch)
            patience = _FAREWELL_S
        finally:
            os.close(reader)
            _end(child, patience)
        said.seek(max(0, said.seek(0, os.SEEK_END) - 4000))
        last_words = said.read().decode(errors="replace")
    if left := confined.strangers(folder):
        raise BadCheckpoint(f"opening it left links or pipes behind: {', '.join(left[:3])}", code="sandbox_crashed")
    try:
        return _answer(child.returncode, data, last_words, settings)
    except BadCheckpoint:
        if shutil.disk_usage(folder).free < _FULL:  # native code has words of its own for that, or none
            raise InsufficientStorage("the disk is full", hint="free some space, then try again") from None
        raise


@cache
def fences() -> Fences | None:
    """Which fences stand on this machine. Asked once per process; takes a tenth of a second."""
    with tempfile.TemporaryDirectory(prefix="enginesmith-probe-") as folder:
        try:
            return _run("workers.load.child:probe", Path(folder), {}, Settings(sandbox_cpu_s=30))[0]
        except Exception:
            log.exception("the sandbox does not start here")
            return None


def _converse(child: subprocess.Popen[bytes], reader: int, said: IO[bytes], request: bytes, watch: Watch) -> bytes:
    assert child.stdin is not None
    try:
        child.stdin.write(request)
        child.stdin.close()
    except BrokenPipeError:
        pass
    found = bytearray()
    with selectors.DefaultSelector() as waiting:
        waiting.register(reader, selectors.EVENT_READ)
        while True:
            if broken := watch.broken():
                raise BadCheckpoint(f"opening it {broken.told}", code=broken.code)
            if os.fstat(said.fileno()).st_size > MAX_ANSWER:
                raise BadCheckpoint("opening it never stops complaining", code="sandbox_crashed")
            if not waiting.select(PERIOD_S):
                if _ended(child):  # and something that it started holds the pipe
                    return bytes(found)
                continue
            part = os.read(reader, 1 << 20)
            if not part:
                return bytes(found)
            found += part
            if len(found) > MAX_ANSWER:
                raise BadCheckpoint("what the sandbox found in it is too large to be told")


def _end(child: subprocess.Popen[bytes], patience: float) -> None:
    """Waits so long for a child that has answered, then kills it with everything it started."""
    if child.stdin is not None and not child.stdin.closed:
        child.stdin.close()
    deadline = time.monotonic() + patience
    while not _ended(child) and time.monotonic() < deadline:
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _ended(child: subprocess.Popen[bytes]) -> bool:
    """Without reaping it, so that its number stays its own."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _answer(code: int, data: bytes, last_words: str, settings: Settings) -> tuple[Fences, dict[str, Any]]:
    told, _, said = data.partition(b"\n")
    try:
        fences, found = Fences(**json.loads(told)), json.loads(said)
    except (ValueError, TypeError):
        raise _death(code, last_words, settings) from None
    if not isinstance(found, dict):
        raise _death(code, last_words, settings)
    if "problem" in found:
        raise from_body(found["problem"])
    result = found.get("result")
    if not isinstance(result, dict):
        raise _death(code, last_words, settings)
    return fences, result


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
    if code == -signal.SIGSYS:
        return BadCheckpoint("opening it made a system call that the sandbox forbids", code="sandbox_crashed")
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return BadCheckpoint(
            f"the process that opened it was ended by {name}: the file crashes a library, or needs more than {memory}",
            code="sandbox_crashed",
            hint="check that the file loads on your own machine",
        )
    lines = last_words.strip().splitlines()
    return Internal(f"the sandbox gave no answer (exit code {code}): {lines[-1][:300] if lines else 'it said nothing'}")
