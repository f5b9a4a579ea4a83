"""Looks at what the images install. Offline: everything is pinned, hashed, and what pyproject.toml asks for. Online:
PyPI knows of no hole in it. Writes a bill of materials of each lock file, build/sbom/*.cdx.json (CycloneDX).

Ends with 1 when something is wrong, and says what could not be looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "deploy" / "locks"
BILLS = ROOT / "build" / "sbom"
BIN = Path(sys.executable).parent


def main() -> int:
    wrong = [f"{lock.name}: {what}" for lock in sorted(LOCKS.glob("*.txt")) for what in of_lock(lock)]
    wrong += list(of_project())
    say(f"offline: {len(list(LOCKS.glob('*.txt')))} lock files: {'as they should be' if not wrong else 'WRONG'}")
    for lock in sorted(LOCKS.glob("*.txt")):
        holes, unknown, asked = looked_up(lock)
        wrong += holes
        if unknown:
            say(f"online: {lock.name}: NOT LOOKED UP: {unknown} of {asked} packages (PyPI's API does not answer here)")
        if unknown < asked:
            say(f"online: {lock.name}: {asked - unknown} packages looked up, {len(holes)} known holes")
        write_bill(lock)
    say(f"bills of materials: {BILLS.relative_to(ROOT)}")
    for what in wrong:
        say(f"WRONG: {what}")
    return 1 if wrong else 0


def pinned(lock: Path) -> dict[str, tuple[Requirement, int]]:
    """Each package of a lock file, by name, and how many hashes it has."""
    found: dict[str, tuple[Requirement, int]] = {}
    for entry in lock.read_text().replace("\\\n", " ").splitlines():
        if entry and not entry.startswith("#"):
            asked, *hashes = entry.split("--hash=")
            requirement = Requirement(asked.strip())
            found[requirement.name] = (requirement, len(hashes))
    return found


def version(requirement: Requirement) -> str:
    return str(requirement.specifier).removeprefix("==")


def of_lock(lock: Path) -> Iterator[str]:
    """What is wrong with one of them."""
    for name, (requirement, hashes) in pinned(lock).items():
        if not str(requirement.specifier).startswith("==") or requirement.url:
            yield f"{name} is not pinned"
        if not hashes:
            yield f"{name} has no hash"


def of_project() -> Iterator[str]:
    """Where what is pinned is not what pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    app = [*project["dependencies"], *extras["app"]]
    worker = [*app, *(asked for asked in extras["worker"] if not asked.startswith("enginesmith["))]
    whole = pinned(LOCKS / "worker.txt") | pinned(LOCKS / "torch-cuda.txt")
    for name, asks, has in (("app", app, pinned(LOCKS / "app.txt")), ("worker", worker, whole)):
        for asked in map(Requirement, asks):
            found = has.get(asked.name.lower().replace("_", "-"))
            if found is None or not asked.specifier.contains(version(found[0]), prereleases=True):
                yield f"{name}.txt: pyproject.toml asks for {asked}: run `make lock`"


def looked_up(lock: Path) -> tuple[list[str], int, int]:
    """Known holes; how many packages were not found out about; of how many."""
    program = [BIN / "pip-audit", "--progress-spinner", "off", "--format", "json"]
    done = subprocess.run(
        [*program, "--disable-pip", "--require-hashes", "--requirement", lock], capture_output=True, text=True
    )
    asked = len(pinned(lock))
    try:
        answers = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return [], asked, asked
    holes = [
        f"{answer['name']} {answer['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'nothing'}"
        for answer in answers
        for hole in answer.get("vulns", ())
    ]
    return holes, sum("skip_reason" in answer for answer in answers), len(answers)


def write_bill(lock: Path) -> None:
    BILLS.mkdir(parents=True, exist_ok=True)
    words = ["--output-reproducible", "--of", "JSON", "-o", BILLS / f"{lock.stem}.cdx.json"]
    subprocess.run([BIN / "cyclonedx-py", "requirements", lock, *words], check=True)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
