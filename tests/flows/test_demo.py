"""`make demo` from start to finish, and what it leaves behind: nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "demo.run"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def processes(folder: Path) -> list[str]:
    """Whatever still runs with this TMPDIR in its environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if str(folder).encode() in environ.read_bytes():
                found.append((environ.parent / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    # Caches of torch and locks of the host have names of their own.
    assert list(tmp_path.glob("enginesmith-demo*")) == []
    assert processes(tmp_path) == []


@pytest.mark.timeout(1800)
def test_the_whole_road(folder: Path) -> None:
    demo = start(folder)
    said, _ = demo.communicate()
    assert demo.returncode == 0, said
    rows = re.findall(r"^ *digits@\d+ .*$", said, re.MULTILINE)
    assert len(rows) == 9, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["the service runs at", "upload, traced here"])
def test_told_to_stop(folder: Path, number: signal.Signals, moment: str) -> None:
    demo = start(folder)
    assert demo.stdout is not None
    with demo, demo.stdout:
        for line in demo.stdout:
            if moment in line:
                break
        demo.send_signal(number)
        demo.stdout.read()
        assert demo.wait(240) == 128 + number
