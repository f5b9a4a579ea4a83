"""What a drill says of itself: what was done, what came of it. `make drills` makes docs/drills.md of it."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

Tell = Callable[..., None]


def teller(request: Any) -> Tell:
    """tell("…"): a sentence of what was seen. It is printed, and kept for the report."""

    def tell(text: str) -> None:
        print(f"\n    {text}", end="")
        request.node.user_properties.append(("told", text))

    return tell


class Results:
    """Of a session: written where DRILLS_REPORT says, as a page."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, list[tuple[str, bool, float, list[str]]]] = {}

    def add(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        file, _, name = report.nodeid.partition("::")
        told = [str(text) for what, text in report.user_properties if what == "told"]
        if report.skipped:
            told = [f"skipped: {report.longrepr[2]}" if isinstance(report.longrepr, tuple) else "skipped"]
        self._rows.setdefault(Path(file).name, []).append((name, report.outcome != "failed", report.duration, told))

    def write(self) -> None:
        lines = [
            "# Drills", "",
            f"`make drills`, {date.today():%Y-%m-%d}, on {os.cpu_count()} cores, at {_commit()}. Each passed unless it "
            "says FAILED: every request answered as it must be, nothing published twice, nothing lost.", "",
        ]  # fmt: skip
        for file, rows in self._rows.items():
            about = (ast.get_docstring(ast.parse((Path(__file__).parent / file).read_text())) or "").split("\n\n")[0]
            lines += [f"## {' '.join(about.split())}", ""]
            for name, good, seconds, told in rows:
                what = name.removeprefix("test_").replace("_", " ")
                head = f"- {'' if good else '**FAILED** '}{what} ({seconds:.0f} s)"
                lines.append(f"{head}{': ' if told else ''}{'. '.join(told)}")
            lines.append("")
        self._path.write_text("\n".join(lines))


def _commit() -> str:
    said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return said.stdout.strip() or "an unknown commit"
