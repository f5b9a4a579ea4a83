"""The health check of a worker's container: the keeper's mark, and what is told when nobody leaves it any more."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from running import Service, until

from workers import alive


def asked(data: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "workers.alive", str(data)], capture_output=True, text=True)


def test_healthy_while_the_mark_is_fresh(tmp_path: Path) -> None:
    none = asked(tmp_path)
    assert none.returncode == 1
    assert "no worker runs here" in none.stderr
    alive.touch(tmp_path / "scratch")
    assert asked(tmp_path).returncode == 0
    old = time.time() - 2 * alive.LONGEST_S
    os.utime(alive.mark(tmp_path / "scratch"), (old, old))
    assert asked(tmp_path).returncode == 1


def test_the_keeper_of_a_running_worker_leaves_it(service: Service) -> None:
    until(lambda: alive.mark(service.data / "scratch").exists())
    assert asked(service.data).returncode == 0
