"""What the images install is pinned, hashed, and what the project asks for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "deploy" / "locks").glob("*.txt"))


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "scripts" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_pinned_and_hashed(lock: Path, audit: ModuleType) -> None:
    assert list(audit.of_lock(lock)) == []
    assert len(audit.pinned(lock)) > 10


def test_what_the_project_asks_for(audit: ModuleType) -> None:
    assert list(audit.of_project()) == []


def test_a_loose_package_is_told(tmp_path: Path, audit: ModuleType) -> None:
    lock = tmp_path / "app.txt"
    lock.write_text("httpx>=0.28\nrich==14.1.0 \\\n    --hash=sha256:12\nnumpy==2.3.1\n")
    assert list(audit.of_lock(lock)) == ["httpx is not pinned", "httpx has no hash", "numpy has no hash"]


def test_torch_is_in_one_lock_alone(audit: ModuleType) -> None:
    named = {lock.stem for lock in LOCKS if "torch" in audit.pinned(lock)}
    assert named == {"torch-cuda"}
    assert not {"torch", "transformers", "nncf"} & set(audit.pinned(ROOT / "deploy" / "locks" / "app.txt"))
