"""The inference half with an older Python and numpy, as a machine with TensorRT 8.6 has them: its tests, all again.

Looks for Python 3.10 in $PYTHON310, in the path, and where pyenv has it; numpy comes from the registry.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
NEEDED = ("numpy==1.26.4", "pytest", "hypothesis")


def python310() -> str | None:
    """One that runs: a name in the path may stand for a version that is not set up."""
    named = [shutil.which(name) for name in (os.environ.get("PYTHON310", ""), "python3.10")]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for found in [*named, *map(str, sorted(pyenv.glob("versions/3.10*/bin/python3.10")))]:
        if found and subprocess.run([found, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
            return found
    return None


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = python310()
    if found is None:
        pytest.skip("needs Python 3.10: set PYTHON310 to where it is")
    folder = tmp_path_factory.mktemp("python310")
    subprocess.run([found, "-m", "venv", str(folder)], check=True)
    made = folder / "bin" / "python"
    done = subprocess.run([made, "-m", "pip", "install", "-q", *NEEDED], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{', '.join(NEEDED)} cannot be fetched: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return made


def run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([str(python), *arguments], cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_its_tests_pass(python: Path, tmp_path: Path) -> None:
    files = [str(path) for path in sorted(HERE.glob("test_*.py")) if path != Path(__file__).resolve()]
    options = ["-q", "-c", os.devnull, "--rootdir", str(ROOT), "--noconftest", "--import-mode=importlib", "-W", "error"]
    done = run(python, tmp_path, "-m", "pytest", "-p", "no:cacheprovider", *options, *files)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout


@pytest.mark.slow
def test_the_check_for_tensorrt_86_starts_and_says_what_is_missing(python: Path, tmp_path: Path) -> None:
    (tmp_path / "networks.json").write_text("[]")
    done = run(python, tmp_path, "-m", "benchmarks.gpu.eight_six", str(tmp_path))
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.startswith(("no NVIDIA", "the NVIDIA driver", "a library is missing: "))
