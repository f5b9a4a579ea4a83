"""The serving benchmark from end to end, with the bare engine and our own service alone: no peer is installed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import serving

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_line_names_contestants_and_workloads() -> None:
    given = serving.parse(["--contestants", "ours,bare,triton", "--without", "triton", "--workloads", "tiny-json"])
    assert given.contestants == ["ours", "bare"]
    assert given.workloads == ["tiny-json"]
    with pytest.raises(SystemExit):
        serving.parse(["--contestants", "nobody"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_a_short_run_measures_the_bare_engine_and_our_own_service(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/serving.py", "--contestants", "bare,ours", "--workloads", "tiny-binary"]
    command += ["--concurrency", "1,4", "--rounds", "1", "--seconds", "1", "--rate", "20", "--open-seconds", "1"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "r")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "r.json").read_text())
    assert {(p["contestant"], p["concurrency"]) for p in told["phases"]} == {
        ("bare", 1), ("bare", 4), ("ours", 1), ("ours", 4), ("ours", 0),
    }  # fmt: skip
    assert sum(p["errors"] for p in told["phases"]) == 0
    assert all(p["requests"] > 0 for p in told["phases"])
    assert told["largest_difference_from_bare"]["ours, tiny-binary"] < 1e-4
    assert (tmp_path / "r.txt").read_text().strip() in done.stdout
    assert str(Path.home()) not in (tmp_path / "r.txt").read_text()
