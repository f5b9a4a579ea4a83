"""What the CPU of this machine can do, read without importing any library."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path


@cache
def flags() -> frozenset[str]:
    """The instruction-set flags of the first core; empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 natively, so that asking for it gains something."""
    return not flags().isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def name() -> str:
    """The kind of CPU, as in `x86_64`."""
    return platform.machine() or "unknown"


@cache
def model() -> str:
    """The CPU by the name its maker gave it, as in `AMD EPYC 9654`; its kind where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return name()
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else name()
