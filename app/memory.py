"""The memory of this process, as the system tells it, and giving back what was freed."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

_STATUS, _STATM = Path("/proc/self/status"), Path("/proc/self/statm")


def resident_bytes() -> int:
    """All that is in memory of this process, mapped files too; 0 where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def private_bytes() -> int | None:
    """Memory of this process that no file backs. None where the system does not tell."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith("RssAnon:")), None)
    return int(found.split()[1]) * 1024 if found else None


def trim() -> None:
    """Gives freed memory back to the system."""
    # glibc keeps freed memory; elsewhere there is no such call.
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)
