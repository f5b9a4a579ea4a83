"""Runs the process that reads a data set, and ends it when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from app.confinement import child as confined
from app.confinement.fences import Fences
from app.confinement.watch import PERIOD_S, Watch
from app.errors import BadDataset, Internal, Problem, TooLarge, from_body
from app.intake.manifest import DatasetManifest
from app.settings import MiB, Settings

log = logging.getLogger("enginesmith.intake")
_MAX_ANSWER = 64 * MiB
_FAREWELL_S = 10.0
_PATIENCE_S = 120  # beyond its CPU time a child may wait for a disk so long
_weak: set[str] = set()
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


async def read_dataset(settings: Settings, manifest: DatasetManifest, file: Path, scratch: Path) -> dict[str, Any]:
    """Reads `file` into scratch/data; gives the fields of a records.Dataset. Raises Problem."""
    scratch, file = scratch.absolute(), file.absolute()
    folder = scratch / "data"
    folder.mkdir()
    asked = {
        "file": str(file),
        "folder": str(folder),
        "scratch": str(scratch),
        "manifest": manifest.model_dump(mode="json"),
        "max_bytes": settings.max_unpacked_bytes,
        "max_files": settings.max_archive_files,
        "parent": os.getpid(),
        "limits": {
            "memory": settings.sandbox_memory_bytes,
            # What it checks by itself, and room for the head of a file.
            "file": settings.max_unpacked_bytes + MiB,
            "cpu": (cpu_s := _cpu_s(settings, file.stat().st_size)),
            "threads": confined.most_threads(),
        },
    }
    async with _turn(settings):
        out, err, code = await _run(asked, scratch, settings)
    if code == -signal.SIGXCPU:
        raise BadDataset(
            f"reading it used more than {cpu_s} seconds of CPU time",
            code="too_slow",
            hint="raise ENGINESMITH_SANDBOX_CPU_S, if the data set is really that slow to read",
        )
    return _answer(code, out, err, folder)


def _cpu_s(settings: Settings, size: int) -> int:
    """What a model may take, for every GiB begun."""
    return settings.sandbox_cpu_s * (1 + size // (1024 * MiB))


def _turn(settings: Settings) -> asyncio.Semaphore:
    """As many at a time as there are cores for us: each may take all the memory that one may take."""
    cores = settings.threads or os.cpu_count() or 1
    return _turns.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(max(2, cores)))


async def _run(asked: dict[str, Any], scratch: Path, settings: Settings) -> tuple[bytes, bytes, int | None]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "app.intake",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=confined.environment(scratch, settings.threads or os.cpu_count() or 1),
        cwd=scratch,
        start_new_session=True,
    )
    try:
        limits = asked["limits"]
        watch = Watch(process.pid, limits["memory"], limits["cpu"] + _PATIENCE_S)
        out, err = await _converse(process, json.dumps(asked).encode(), watch)
    finally:
        await asyncio.shield(_bury(process))
    return out, err, process.returncode


async def _bury(process: asyncio.subprocess.Process) -> None:
    """With whatever it started. Its pipes are read to their end: a loop that reads no more sees no end of it."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    pipes = (pipe for pipe in (process.stdout, process.stderr) if pipe is not None)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FAREWELL_S):
            await asyncio.gather(*(_throw_away(pipe) for pipe in pipes))
            await process.wait()


async def _throw_away(pipe: asyncio.StreamReader) -> None:
    while await pipe.read(MiB):
        pass


async def _converse(process: asyncio.subprocess.Process, request: bytes, watch: Watch) -> tuple[bytes, bytes]:
    """What it answers and says, while it is watched."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    reading = [asyncio.ensure_future(_read(pipe)) for pipe in (process.stdout, process.stderr)]
    try:
        with contextlib.suppress(ConnectionError):
            process.stdin.write(request)
            await process.stdin.drain()
        process.stdin.close()
        while not all(r.done() for r in reading):
            if process.returncode is not None and not (await asyncio.wait(reading, timeout=1))[0]:
                # It is gone, and something that it started holds the pipes.
                with contextlib.suppress(ProcessLookupError):  # or nothing does, and this machine is slow
                    os.killpg(process.pid, signal.SIGKILL)
            await asyncio.wait(reading, timeout=PERIOD_S)
            if broken := watch.broken():
                raise BadDataset(f"reading it {broken.told}", code=broken.code)
            if any(r.done() and len(r.result()) > _MAX_ANSWER for r in reading):  # the rest of it waits to be read
                break
        out, err = (r.result() if r.done() else b"" for r in reading)
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
    if max(len(out), len(err)) > _MAX_ANSWER:
        raise BadDataset("what is to be told of it is too large")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), 5)
    return out, err


async def _read(pipe: asyncio.StreamReader) -> bytes:
    """All of it, or a little more than may be."""
    found = bytearray()
    while len(found) <= _MAX_ANSWER and (part := await pipe.read(MiB)):
        found += part
    return bytes(found)


def _answer(code: int | None, out: bytes, err: bytes, folder: Path) -> dict[str, Any]:
    told, _, said = out.partition(b"\n")
    try:
        fences, answer = Fences(**json.loads(told)), json.loads(said)
        if not isinstance(answer, dict):
            raise TypeError
    except (ValueError, TypeError):
        log.error("the reader of a data set ended with %s: %s", code, err.decode(errors="replace")[-2000:])
        if code == -9:
            raise TooLarge("reading this data set takes more memory than there is") from None
        raise Internal("the process that read the data set died", hint="its file may be made to do so") from None
    if not fences.strong and fences.told() not in _weak:
        _weak.add(fences.told())
        log.warning("data sets are read with isolation %s", fences.told())
    if "problem" in answer:
        problem: Problem = from_body(answer["problem"])
        if problem.status >= 500:
            log.error("reading a data set failed: %s", err.decode(errors="replace")[-2000:])
        raise problem
    if left := confined.strangers(folder):
        raise BadDataset(f"reading it left links or pipes behind: {', '.join(left[:3])}")
    draft: dict[str, Any] = answer["draft"]
    return draft
