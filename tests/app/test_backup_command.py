"""`enginesmith backup`, `restore` and `reindex` as they are typed, beside the service's store and beside another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.__main__ import main
from app.domain.records import Job, now
from app.settings import Settings
from app.storage.catalog import Catalog


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    monkeypatch.setenv("ENGINESMITH_REDIS_URL", str(settings.redis_url))

    def command(*words: str, code: int = 0) -> Any:
        assert main([*words]) == code
        said = capsys.readouterr()
        return said.err if code else json.loads(said.out)

    return command


def test_there_and_back(
    run: Callable[..., Any], settings: Settings, catalog: Catalog, make_version: Any, tmp_path: Path
) -> None:
    make_version()
    data, file = ("--data", str(settings.data)), str(tmp_path / "jobs.backup")
    catalog.add(Job(id="one", kind="train", spec={"kind": "train"}, queue="cpu", created_at=now()))
    assert run("backup", file, *data)["keys"] > 0
    assert "holds jobs already" in run("restore", file, *data, code=1)
    catalog.redis.flushdb()
    found = run("restore", file, *data)
    assert found["versions"] == 1
    assert catalog.job("one").kind == "train"


def test_a_store_with_nothing_in_it_is_another_one(
    run: Callable[..., Any], settings: Settings, catalog: Catalog, make_version: Any, tmp_path: Path
) -> None:
    version = make_version()
    file, other = str(tmp_path / "jobs.backup"), ("--data", str(tmp_path / "elsewhere"))
    run("backup", file)
    assert "there is nothing in the store" in run("restore", file, "--replace", *other, code=1)
    assert "ENGINESMITH_STORE_URL" in run("reindex", *other, code=1)
    assert catalog.version(version.name, version.version) == version  # as it was


def test_through_pipes(settings: Settings, catalog: Catalog, make_version: Any) -> None:
    """As out of a container and into it."""
    make_version()
    catalog.add(Job(id="one", kind="train", spec={"kind": "train"}, queue="cpu", created_at=now()))
    environ = {"ENGINESMITH_REDIS_URL": str(settings.redis_url), "ENGINESMITH_DATA": str(settings.data)}

    def ran(*words: str, sent: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "app", *words]
        return subprocess.run(command, input=sent, env=os.environ | environ, capture_output=True, timeout=120)

    wrote = ran("backup", "-")
    assert json.loads(wrote.stderr)["keys"] > 0
    catalog.redis.flushdb()
    cut = ran("restore", "-", sent=wrote.stdout[:-20])
    assert (cut.returncode, b"Traceback" in cut.stderr) == (1, False)
    assert catalog.redis.keys("es:job*") == []
    assert json.loads(ran("restore", "-", sent=wrote.stdout).stdout)["versions"] == 1
    assert catalog.job("one").kind == "train"
