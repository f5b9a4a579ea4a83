"""The fences around a stranger's file, tried from inside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from running import until

from app.confinement.fences import Level
from app.errors import BadCheckpoint, Internal, Unprocessable
from app.settings import Settings
from workers.load import sandbox

SETTINGS = Settings(sandbox_memory_bytes=2 * 2**30, sandbox_file_bytes=2**20, sandbox_cpu_s=120, threads=1)


@pytest.fixture(autouse=True)
def _tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def run(task: str, folder: Path, settings: Settings = SETTINGS, **arguments: Any) -> dict[str, Any]:
    return sandbox.run(f"tasks:{task}", folder / "scratch", arguments, settings)


def test_it_works_in_its_scratch_folder(tmp_path: Path) -> None:
    found = run("environment", tmp_path)
    assert found["cwd"] == found["environment"]["HOME"] == str(tmp_path / "scratch")


def test_the_fences_are_probed_once() -> None:
    found = sandbox.fences()
    assert found
    assert found.level in get_args(Level)
    probes = sandbox.fences.cache_info().misses
    assert sandbox.fences() == found
    assert sandbox.fences.cache_info().misses == probes


def test_answers_and_problems_cross_the_pipe(tmp_path: Path) -> None:
    said = {"text": "ünïcode", "numbers": [1, 2.5, None]}
    assert run("chatter", tmp_path, **said)["said"] == said
    with pytest.raises(Unprocessable) as caught:
        run("refuse", tmp_path)
    assert (caught.value.code, caught.value.hint) == ("very_bad", "do better")
    assert caught.value.errors == [{"loc": ["a"], "msg": "b"}]


def test_a_crash_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(Unprocessable, match="SIGABRT") as caught:
        run("abort", tmp_path)
    assert not caught.value.retryable
    with pytest.raises(Internal, match="exit code 3"):
        run("leave", tmp_path)


@pytest.mark.parametrize("task", ["hoard", "hoard_tensors"])
def test_memory_is_limited(task: str, tmp_path: Path) -> None:
    with pytest.raises(Unprocessable, match="memory") as caught:
        run(task, tmp_path, bytes=3 * 2**30)
    assert caught.value.code == "too_much_memory"
    assert "ENGINESMITH_SANDBOX_MEMORY_BYTES" in str(caught.value.hint)


def test_files_are_limited(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="file larger"):
        run("write", tmp_path, bytes=2**21)
    with pytest.raises(BadCheckpoint, match="too large to be told"):
        run("shout", tmp_path, bytes=sandbox.MAX_ANSWER)


def test_time_is_limited(tmp_path: Path) -> None:
    with pytest.raises(Unprocessable, match="1 seconds of CPU") as caught:
        run("spin", tmp_path, Settings(sandbox_cpu_s=1))
    assert caught.value.code == "too_slow"


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from app.settings import Settings; from workers.load import sandbox\n"
        f"sandbox.run('tasks:sleep', Path({str(tmp_path)!r}), {{}}, Settings())"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    pid_file = tmp_path / "pid"
    try:
        until(lambda: pid_file.exists() and pid_file.read_text() != "")
    finally:
        parent.kill()
        parent.wait()
    child = int(pid_file.read_text())
    until(lambda: not _runs(child))  # by itself it would sleep for longer


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # gone, perhaps while we looked
        return False


def test_this_side_knows_no_torch() -> None:
    code = "import sys, workers.load.sandbox, workers.load.child; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0
