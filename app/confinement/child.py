"""What a confined child sees and reads, how many threads it may have, and what it left behind."""

from __future__ import annotations

import importlib.util
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

# What a child sees of our environment: no addresses, no keys, no proxies.
_KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TZ", "SSL_CERT_FILE")
_OURS = ("app", "workers", "enginesmith")
_MODULES = (".py", ".pyc", ".so", ".zip")


def environment(folder: Path, threads: int) -> dict[str, str]:
    """For a child that writes below `folder`, where `tmp` is made."""
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    return {k: os.environ[k] for k in _KEPT if k in os.environ} | {
        "PYTHONPATH": os.pathsep.join(str(Path(p).absolute()) for p in sys.path if p),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "OMP_NUM_THREADS": str(threads),
    }


def code() -> list[Path]:
    """Where modules come from. Of a place that holds more than libraries (a home, a checkout), the modules alone."""
    homes = [Path(p) for p in (sys.prefix, sys.base_prefix, sys.exec_prefix) if p != "/"]
    packages = [importlib.util.find_spec(name) for name in _OURS]
    found = [*homes, *(Path(p) for spec in packages if spec for p in spec.submodule_search_locations or ())]
    found += [Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if p.startswith("/")]
    for place in map(Path, filter(None, sys.path)):
        if any(place.is_relative_to(home) for home in homes):
            continue
        found += [place] if place.suffix == ".zip" or any(place.glob("*.dist-info")) else _modules(place)
    return found


def names() -> list[Path]:
    """Where an import looks which modules there are."""
    return [Path(p) for p in sys.path if p]


def _modules(place: Path) -> Iterator[Path]:
    if place.is_dir():
        for entry in place.iterdir():
            if entry.suffix in _MODULES or (entry / "__init__.py").exists():
                yield entry


def most_threads() -> int:
    """More than any library starts on this machine."""
    return 128 + 16 * (os.cpu_count() or 1)


def strangers(folder: Path) -> list[str]:
    """What a child left there beside files and folders: links and pipes, which are nobody's to follow."""
    found = []
    for above, folders, files in os.walk(folder):
        for name in (*folders, *files):
            kind = os.lstat(os.path.join(above, name))  # noqa: PTH118
            if not stat.S_ISDIR(kind.st_mode) and (not stat.S_ISREG(kind.st_mode) or kind.st_nlink > 1):
                found.append(os.path.relpath(os.path.join(above, name), folder))  # noqa: PTH118
    return found
