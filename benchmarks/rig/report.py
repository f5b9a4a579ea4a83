"""The table on the terminal and the two files that are kept of a run."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rig.contestants import CONTESTANTS, OURS
from benchmarks.rig.figures import Phase, cell, median_of, ratio, select
from benchmarks.rig.targets import Target

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve")


def table(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head; the first column is aligned to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def shown(value: float | None) -> str:
    """Three figures or four, and thousands whole."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"


def closed_loop(phases: Sequence[Phase], workload: str, concurrencies: Sequence[int]) -> str:
    """Requests/s and p50 at every concurrency, CPU and memory at the highest, ours ÷ each at every one."""
    head = [workload, *(f"{c}: req/s" for c in concurrencies), *(f"{c}: p50 ms" for c in concurrencies)]
    many = concurrencies[-1]
    rows = [[*head, "CPU ms", "MB", *(f"{c}: ours ÷" for c in concurrencies)]]
    for name in _names(phases, workload):
        cells = [cell(phases, name, workload, c) for c in concurrencies]
        last = cells[-1]
        memory = median_of([p.memory_mb for p in select(phases, name, workload, many)])
        ratios = [None if name == OURS else ratio(phases, OURS, name, workload, c) for c in concurrencies]
        failed = sum(c.errors for c in cells if c)
        rows.append(
            [
                f"{name} ({failed} errors)" if failed else name,
                *(shown(c.per_s if c else None) for c in cells),
                *(shown(c.p50_ms if c else None) for c in cells),
                shown(last.cpu_ms if last else None),
                shown(memory),
                *map(shown, ratios),
            ]
        )
    return table(rows)


def open_loop(phases: Sequence[Phase], workload: str) -> str:
    rows = [[workload, "p50 ms", "p99 ms", "CPU ms", "errors"]]
    for name in _names(phases, workload):
        if found := cell(phases, name, workload, 0):
            rows.append([name, *map(shown, (found.p50_ms, found.p99_ms, found.cpu_ms)), str(found.errors)])
    return table(rows)


def _names(phases: Sequence[Phase], workload: str) -> list[str]:
    there = {p.contestant for p in phases if p.workload == workload}
    return [c.name for c in CONTESTANTS if c.name in there]


def target_lines(found: Iterable[Target]) -> str:
    words = {True: "met", False: "MISSED", None: "not measured"}
    rows = [["target", "wanted", "measured", ""]]
    for target in found:
        bound = f"{'≥' if target.at_least else '≤'} {target.bound:g}{target.unit}"
        value = "-" if target.value is None else f"{shown(target.value)}{target.unit}"
        rows.append([target.told, bound, value, words[target.met]])
    return table(rows)


def load_line(phases: Sequence[Phase], cores: int) -> str:
    """What else the machine did, as far as its load average tells: the benchmark's own load is in it."""
    loads = [p.load_1m for p in phases]
    return (
        f"load average (1 min, this run's own included): first {loads[0]:.2f}, median {statistics.median(loads):.2f}, "
        f"highest {max(loads):.2f}, on {cores} cores"
    )


def machine(cores: int) -> dict[str, Any]:
    """In words that name no machine."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    flags = [flag for flag in _FLAGS if flag in line.split()]
    return {"cores": cores, "architecture": platform.machine(), "flags": flags, "python": platform.python_version()}


def save(path: Path, text: str, told: dict[str, Any]) -> None:
    """PATH.txt and PATH.json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".txt").write_text(text + "\n")
    path.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
