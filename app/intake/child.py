"""Runs the process that reads a data set, and ends it when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

from app.errors import Internal, Problem, TooLarge, from_body
from app.intake.manifest import DatasetManifest
from app.processes import die_with_parent
from app.settings import Settings

log = logging.getLogger("enginesmith.intake")


async def read_dataset(settings: Settings, manifest: DatasetManifest, file: Path, scratch: Path) -> dict[str, Any]:
    """Reads `file` into scratch/data; gives the fields of a records.Dataset. Raises Problem."""
    folder = scratch / "data"
    folder.mkdir()
    asked = {
        "file": str(file),
        "folder": str(folder),
        "scratch": str(scratch),
        "manifest": manifest.model_dump(mode="json"),
        "max_bytes": settings.max_unpacked_bytes,
        "max_files": settings.max_archive_files,
        "memory_bytes": settings.sandbox_memory_bytes,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "app.intake",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=settings.environ(),
        preexec_fn=die_with_parent(),
    )
    try:
        out, err = await process.communicate(json.dumps(asked).encode())
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
        raise
    try:
        answer = json.loads(out)
    except ValueError:
        told = err.decode(errors="replace")[-2000:]
        log.error("the reader of a data set ended with %s: %s", process.returncode, told)
        if process.returncode == -9:
            raise TooLarge("reading this data set takes more memory than there is") from None
        raise Internal("the process that read the data set died", hint="its file may be made to do so") from None
    if "problem" in answer:
        problem: Problem = from_body(answer["problem"])
        if problem.status >= 500:
            log.error("reading a data set failed: %s", err.decode(errors="replace")[-2000:])
        raise problem
    draft: dict[str, Any] = answer["draft"]
    return draft
