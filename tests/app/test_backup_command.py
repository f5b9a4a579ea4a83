"""`enginesmith backup`, `restore` and `reindex` as they are typed, beside the service's store and beside another."""

from __future__ import annotations

import json
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
