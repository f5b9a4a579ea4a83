"""Starts the service as its users do: a store, an app and workers, as child processes on a free port; waits for it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Service:
    """A running `python -m app serve`."""

    url: str
    data: Path
    process: subprocess.Popen[str]

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(120)  # beyond every patience of the service's own
        finally:
            if self.process.poll() is None:
                self.process.kill()
            with contextlib.suppress(OSError):
                if self.process.stdout:
                    self.process.stdout.close()


def until(true: Callable[[], bool]) -> None:
    """Waits for what must come. The bound says that it never will, and nothing about speed."""
    deadline = time.monotonic() + 240
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def files_in(folder: Path) -> list[Path]:
    """Every file below a folder, in which others may be deleting."""
    return [Path(place) / name for place, _, names in os.walk(folder) for name in names]


def start_service(data: Path, *, workers: int = 1, arguments: tuple[str, ...] = (), **environ: str) -> Service:
    """Starts the three processes on a free port and waits for the line that says they are ready."""
    data.mkdir(parents=True, exist_ok=True)
    with (data / "service.log").open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "app",
                "serve",
                "--port",
                "0",
                "--data",
                data,
                "--workers",
                str(workers),
                *arguments,
            ],
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if not k.startswith("ENGINESMITH_")} | environ,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://\S+", line)
    if not found:
        process.kill()
        pytest.fail(f"the service did not start: {line}\n{(data / 'service.log').read_text()[-4000:]}")
    return Service(found[0], data, process)
