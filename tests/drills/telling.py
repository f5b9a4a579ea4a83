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
        """What was not drilled now stays as it was told."""
        pages = self._path.read_text().split("\n## ")[1:] if self._path.exists() else []
        sections = {page.partition("\n")[0]: page.rstrip("\n") for page in pages}
        for file, rows in self._rows.items():
            about = (ast.get_docstring(ast.parse((Path(__file__).parent / file).read_text())) or "").split("\n\n")[0]
            title = " ".join(about.split())
            lines = [title, "", f"{date.today():%Y-%m-%d}, {os.cpu_count()} cores, at {_commit()}.", ""]
            silent = sum(good and not told for _, good, _, told in rows)
            for name, good, seconds, told in rows:
                if good and not told and silent > _SILENT:
                    continue
                what = name.removeprefix("test_").replace("_", " ")
                head = f"- {'' if good else '**FAILED** '}{what} ({seconds:.0f} s)"
                lines.append(f"{head}{': ' if told else ''}{'. '.join(told)}")
            if silent > _SILENT:
                lines.append(f"- and {silent} more, of which there is nothing to tell")
            sections[title] = "\n".join(lines)
        self._path.write_text("\n\n## ".join([_HEAD, *(sections[title] for title in sorted(sections))]) + "\n")


_SILENT = 12  # rows without a word, before they are only counted
_HEAD = """# Drills

What `make drills` did to a real service, and what came of it. Each passed unless it says FAILED: every request was
answered as it must be, nothing was published twice, nothing was lost."""


def _commit() -> str:
    said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return said.stdout.strip() or "an unknown commit"
