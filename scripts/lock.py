"""Pins and hashes what the images install: deploy/locks/*.txt.

What is installed beside this Python is what the tests ran with, and therefore what is pinned.
app.txt and worker.txt are whole but for torch: that is torch-cuda.txt with CUDA, and a build without in the image for
CPUs (its index's, which is not PyPI's). One file for all platforms and versions of Python from 3.11 on.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "deploy" / "locks"
UV = Path(sys.executable).parent / "uv"
# What our own package is built with, in an image that may install nothing without a hash.
BUILT_WITH = "setuptools>=80\n"
WITH_CUDA = re.compile(r"(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z-]+)==")


def main() -> int:
    LOCKS.mkdir(exist_ok=True)
    for extra in ("app", "worker"):
        packages = compiled(extra)
        cuda = [package for package in packages if WITH_CUDA.match(package)]
        write(f"{extra}.txt", [package for package in packages if package not in cuda])
        if cuda:
            write("torch-cuda.txt", cuda)
    return 0


def compiled(extra: str) -> list[str]:
    """Each package of a solution, with its marker and hashes."""
    with tempfile.TemporaryDirectory() as scratch:
        more, tested, out = Path(scratch) / "more.in", Path(scratch) / "tested.txt", Path(scratch) / "lock.txt"
        more.write_text(BUILT_WITH)
        tested.write_text("".join(f"{package}\n" for package in installed() if not WITH_CUDA.match(package)))
        words = [
            "--extra",
            extra,
            "--universal",
            "--python-version",
            "3.11",
            "--generate-hashes",
            "--no-emit-index-url",
        ]
        words += ["--no-emit-find-links", "--no-annotate", "--no-header", "--quiet", "-c", str(tested), "-o", str(out)]
        subprocess.run([UV, "pip", "compile", ROOT / "pyproject.toml", more, *words], check=True)
        return re.split(r"\n(?=\S)", out.read_text().strip())


def installed() -> list[str]:
    found = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    return sorted(f"{name}=={version}" for name, version in found.items() if name not in ("enginesmith", "setuptools"))


def write(name: str, packages: list[str]) -> None:
    (LOCKS / name).write_text("# Made by `make lock`.\n" + "\n".join(packages) + "\n")


if __name__ == "__main__":
    sys.exit(main())
