"""Where fetched engines lie on this machine: one folder per version, verified, removed when nothing deploys it."""

from __future__ import annotations

import gc
import hashlib
import shutil
import time
import uuid
from pathlib import Path

from app.domain.records import Version
from app.memory import trim
from app.storage import registry
from app.storage.artifacts import Artifacts

_ABANDONED_S = 3600.0


def fetch(artifacts: Artifacts, version: Version, shelf: Path) -> Path:
    """The folder with a version's files; fetched unless they lie there already. Raises what fetch_files does."""
    home = shelf / version.ref
    if is_whole(home, version):
        return home
    part = shelf / f".{uuid.uuid4().hex}"
    try:
        registry.fetch_files(artifacts, version.folder, version.files, part)
        shutil.rmtree(home, ignore_errors=True)
        try:
            part.rename(home)
        except OSError:
            if not is_whole(home, version):  # else another replica on this machine was faster
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return home


def clear(shelf: Path, keep: set[str]) -> None:
    """Removes what is not in `keep`, and gives the memory that engines have freed back to the system."""
    for folder in shelf.iterdir() if shelf.is_dir() else ():
        try:
            is_part = folder.name.startswith(".")
            stale = time.time() - folder.stat().st_mtime > _ABANDONED_S if is_part else folder.name not in keep
        except FileNotFoundError:  # fetched whole, and renamed, at this very moment
            continue
        if stale:
            shutil.rmtree(folder, ignore_errors=True)
    gc.collect(1)  # not everything: that would hold up every request for as long as it takes
    trim()


def is_whole(folder: Path, version: Version) -> bool:
    """Whether every file of a version lies there as it was published."""
    for name, sha256 in version.files.items():
        try:
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    return False
        except OSError:  # not there, or tidied away at this very moment
            return False
    return True
