"""The artifact store as a folder, and as a bucket of a server that is asked over real HTTP: every test meets both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from running import files_in
from s3_server import S3, running_s3

from app.settings import Settings
from app.storage.artifacts import Artifacts


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """One that the environment names."""
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(params=["folder", "s3"])
def artifacts(request: pytest.FixtureRequest, settings: Settings) -> Artifacts:
    if request.param == "folder":
        return Artifacts(settings.artifacts_url)
    return Artifacts(f"s3://{request.getfixturevalue('s3').bucket()}/deep/prefix")


@pytest.fixture
def left(artifacts: Artifacts, request: pytest.FixtureRequest) -> Callable[[], list[str]]:
    """What lies in the store, unfinished uploads too."""
    parts = urlsplit(artifacts.url)
    if parts.scheme == "file":
        return lambda: [str(path) for path in files_in(Path(parts.path))]
    s3: S3 = request.getfixturevalue("s3")
    return lambda: [*artifacts.keys(""), *s3.parts(parts.netloc)]
