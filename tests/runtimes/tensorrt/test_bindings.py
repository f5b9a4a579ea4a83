"""The real Python bindings of TensorRT 10 and 11, over empty libraries: their names, and how they call our classes.

The registry has the bindings for everybody; TensorRT itself, some gigabytes, is not needed.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tensorrt_used import missing

from scripts.tensorrt_stubs import TOOLS, needed, write

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
LISTS = {version: json.loads((ROOT / f"tests/golden/tensorrt/{version}.json").read_text()) for version in ("10", "11")}
# The newest 10 and the first 11: between them and those of the lists is all that pyproject.toml allows.
OTHERS = ("10.16.1.11", "11.0.0.114")
linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or not all(shutil.which(tool) for tool in TOOLS),
    reason=f"needs x86-64 Linux with {', '.join(TOOLS)}",
)


class Bindings:
    """Those of one version, in a folder of their own, with empty libraries where they look for TensorRT's."""

    def __init__(self, version: str, folder: Path) -> None:
        command = ["pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
        done = subprocess.run(
            [sys.executable, "-m", *command, f"tensorrt-cu13-bindings=={version}"], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"the bindings cannot be fetched: {(done.stderr.strip().splitlines() or [''])[-1]}")
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder)
        write(folder / "tensorrt_bindings" / "tensorrt.so", folder / "libraries", ("libnv",))
        self._folder = folder

    def run(self, script: Path) -> dict[str, Any]:
        """In a process of its own: the libraries are looked for when it starts."""
        env = os.environ | {"LD_LIBRARY_PATH": str(self._folder / "libraries"), "PYTHONPATH": f"{self._folder}:{ROOT}"}
        command = [sys.executable, str(script), "tensorrt_bindings"]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


@pytest.mark.slow
@linux
@pytest.mark.parametrize("version", [*(known["version"] for known in LISTS.values()), *OTHERS])
def test_the_real_bindings(version: str, tmp_path: Path) -> None:
    bindings = Bindings(version, tmp_path)
    found = bindings.run(ROOT / "scripts" / "tensorrt_names.py")
    assert found["version"] == version
    major = version.partition(".")[0]
    if version == LISTS[major]["version"]:
        assert found == LISTS[major]
    assert missing(major, found["names"]) == set()
    called(bindings.run(HERE / "callbacks.py"), {"allocated", "allocated_in_order"})


def called(found: dict[str, Any], ways: set[str]) -> None:
    """What callbacks.py tells of classes that suit: 8.6 answers so too."""
    assert found["said"] == "of severity 0; of severity 1"
    assert {name for name in found if name.startswith("allocated")} == ways
    for way in ways:
        assert found[way] == {"given": [True, True, True], "shape": [5, 7], "no_memory": None, "freed": 2}


@linux
def test_tensorrt_for_rtx_calls_our_classes() -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    command = [sys.executable, str(HERE / "callbacks.py"), "tensorrt_rtx"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    called(json.loads(done.stdout), {"allocated_in_order"})


@linux
def test_empty_libraries_stand_in_for_those_that_are_missing(tmp_path: Path) -> None:
    """Of functions with a version, as cuBLAS's, and of TensorRT's, which have none."""
    far, near = tmp_path / "libfar.so.3", tmp_path / "near.so"
    (tmp_path / "map").write_text("libfar.so.3 { global: *; };")
    compiled(far, "int far_away(void) { return 5; }", f"-Wl,-soname,{far.name},--version-script={tmp_path / 'map'}")
    compiled(near, "int far_away(void); int asked(void) { return far_away(); }", str(far))
    assert needed(near)[0] == "libfar.so.3"
    far.unlink()
    assert asked(near, tmp_path).returncode != 0
    assert write(near, tmp_path / "stubs", ("libfar",)) == ["libfar.so.3"]
    done = asked(near, tmp_path / "stubs")
    assert (done.returncode, done.stdout) == (0, "1\n")


def compiled(library: Path, code: str, *options: str) -> None:
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-x", "none", *options, "-o", str(library)]
    subprocess.run(command, input=code, text=True, check=True)


def asked(library: Path, libraries: Path) -> subprocess.CompletedProcess[str]:
    code = f"import ctypes; print(ctypes.CDLL({str(library)!r}).asked())"
    env = os.environ | {"LD_LIBRARY_PATH": str(libraries)}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
