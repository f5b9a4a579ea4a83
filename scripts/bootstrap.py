"""Makes .venv from nothing, with the standard library only; Debian's python3 without pip or ensurepip will do.

    python3 scripts/bootstrap.py

    --only-venv   stop once there is a .venv with pip in it
    --venv DIR    somewhere else than .venv
TORCH_INDEX names an index to take torch from (https://download.pytorch.org/whl/cpu: a tenth of the size, no CUDA).
EXTRAS=vision adds torchvision and timm; gpu and rtx what NVIDIA GPUs need (docs/gpu.md); drills and supply what
`make drills`, and `make lock` and `make audit` need. Otherwise pip's own settings (PIP_INDEX_URL, pip.conf, …) decide.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TORCH = "torch==2.13.0"
# torchvision's wheels ask for the very torch they were built with; without dependencies the one above stays.
EXTRAS = {
    "vision": ["--no-deps", "torchvision==0.28.0", "timm>=1.0"],
    "gpu": ["--editable", f"{ROOT}[gpu]"],
    "rtx": ["--editable", f"{ROOT}[rtx]"],
    "drills": ["--editable", f"{ROOT}[drills]"],
    "supply": ["--editable", f"{ROOT}[supply]"],
}

# More than an import: an empty folder of that name can be imported too.
HAS_PIP = "import pip; pip.__version__"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--only-venv", action="store_true")
    given = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 - it may be run with any
        say(f"Enginesmith needs Python 3.11 or newer; this is {platform.python_version()}")
        say("name another: make setup PYTHON=/usr/bin/python3.11")
        return 2
    venv = given.venv.absolute()
    python = venv / "bin" / "python"
    stamp, wanted = venv / ".enginesmith", fingerprint(venv)
    if stamp.is_file() and stamp.read_text() == wanted and python.exists():
        return 0
    try:
        make_venv(venv, python)
        if not given.only_venv:
            install(python)
            stamp.write_text(wanted)
            say(f"done: {venv}")
    except (subprocess.CalledProcessError, OSError, LookupError, ValueError) as error:
        say(f"failed: {error}")
        say("run the same again once that is mended: what is there already is kept")
        return 1
    return 0


def say(text: str) -> None:
    sys.stderr.write(f"setup: {text}\n")
    sys.stderr.flush()


def fingerprint(venv: Path) -> str:
    """Of everything that decides what is installed, and where: a copied or moved .venv is made anew."""
    found = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + Path(__file__).read_bytes())
    asked = ("{}.{}".format(*sys.version_info), os.environ.get("TORCH_INDEX", ""), os.environ.get("EXTRAS", ""))
    return f"{found.hexdigest()} {' '.join(asked)} {venv}\n"


def works(python: Path, code: str) -> bool:
    try:
        done = subprocess.run([str(python), "-I", "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError:
        return False
    return done.returncode == 0


def make_venv(venv: Path, python: Path) -> None:
    """A virtual environment with pip. A half-made, broken or moved one is made anew; a sound one is kept."""
    same = (
        f"import sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])!r} or sys.prefix != {str(venv)!r})"
    )
    if venv.exists() and not (works(python, same) and made_here(venv)):
        say(f"{venv} is not usable here; making it anew")
        shutil.rmtree(venv)
    if not venv.exists():
        ready = works(Path(sys.executable), "import venv, ensurepip; ensurepip.version()")
        say(f"python -m venv {venv}" + ("" if ready else " --without-pip (this Python has no ensurepip)"))
        command = [sys.executable, "-m", "venv", *([] if ready else ["--without-pip"]), str(venv)]
        if subprocess.run(command).returncode and ready:
            # Debian's ensurepip can be importable and yet empty.
            shutil.rmtree(venv, ignore_errors=True)
            say("that failed; once more --without-pip")
            run(sys.executable, "-m", "venv", "--without-pip", str(venv))
    if works(python, HAS_PIP):
        return
    if works(Path(sys.executable), HAS_PIP):
        say("pip from the system's pip")
        if not subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", "pip"]).returncode:
            return
    sys.path.insert(0, str(HERE))
    import get_pip_wheel

    wheel = get_pip_wheel.download(venv, say)
    try:
        run(python, f"{wheel}/pip", "install", "--no-index", "--no-deps", wheel)
    finally:
        wheel.unlink()


def made_here(venv: Path) -> bool:
    """Whether the scripts in it (their first lines are absolute paths) were written for this place."""
    stamp = venv / ".enginesmith"
    return not stamp.is_file() or stamp.read_text().rstrip("\n").endswith(f" {venv}")


def install(python: Path) -> None:
    """torch first and by itself, so that nothing else can choose another build of it; then the rest, editable."""
    index = os.environ.get("TORCH_INDEX", "").strip()
    if not works(python, f"import importlib.metadata as m; assert m.version('torch').split('+')[0] == '{TORCH[7:]}'"):
        say(f"{TORCH} from {index or 'the default index (TORCH_INDEX can name a smaller, CPU-only build)'}")
    pip(python, TORCH, *(["--index-url", index] if index else []))
    say("Enginesmith with what its app, its workers and its tests need")
    pip(python, "--editable", f"{ROOT}[worker,dev]")
    # The editable install alone is found last: beside a clone called enginesmith, that folder would be taken for it.
    packages = python.parent.parent / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
    (packages / "enginesmith-client.pth").write_text(f"{ROOT / 'client'}\n")
    for extra in os.environ.get("EXTRAS", "").replace(",", " ").split():
        if extra not in EXTRAS:
            raise LookupError(f"EXTRAS knows {', '.join(EXTRAS)}, not {extra}")
        pip(python, *EXTRAS[extra])


def pip(python: Path, *arguments: str) -> None:
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments)


def run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True)


if __name__ == "__main__":
    sys.exit(main())
