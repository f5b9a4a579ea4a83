"""Fixtures over real parts: an embedded store, an artifact store on disk, a whole service as child processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.embedded import EmbeddedStore
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def _store() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="es-store-") as folder:
        store = EmbeddedStore(Path(folder))
        yield store.start()
        store.stop()


@pytest.fixture
def redis_url(_store: str) -> str:
    """A real, empty server."""
    import redis

    with redis.Redis.from_url(_store) as client:
        client.flushall()
    return _store


@pytest.fixture
def settings(tmp_path: Path, redis_url: str) -> Settings:
    return Settings(data=tmp_path / "data", redis_url=redis_url, threads=1)


@pytest.fixture
def artifacts(settings: Settings) -> Artifacts:
    return Artifacts(settings.artifacts_url)


@pytest.fixture
def catalog(settings: Settings, redis_url: str) -> Iterator[Catalog]:
    opened = Catalog.open(settings, redis_url, patience_s=2)
    yield opened
    opened.redis.close()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Other people's checkpoints and data, where they are at hand."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data, which is not here")
    return folder


@dataclass
class Service:
    """A running `python -m app serve`."""

    url: str
    data: Path
    process: subprocess.Popen[str]

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(40)
        finally:
            if self.process.poll() is None:
                self.process.kill()
            with contextlib.suppress(OSError):
                if self.process.stdout:
                    self.process.stdout.close()


def start_service(data: Path, *, workers: int = 1, arguments: tuple[str, ...] = (), **environ: str) -> Service:
    """Starts the three processes on a free port and waits for the line that says they are ready."""
    data.mkdir(parents=True, exist_ok=True)
    with (data / "service.log").open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "app",
                "serve",
                "--port",
                "0",
                "--data",
                data,
                "--workers",
                str(workers),
                *arguments,
            ],
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if not k.startswith("ENGINESMITH_")} | environ,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://\S+", line)
    if not found:
        process.kill()
        pytest.fail(f"the service did not start: {line}\n{(data / 'service.log').read_text()[-4000:]}")
    return Service(found[0], data, process)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests that share it."""
    started = start_service(tmp_path_factory.mktemp("service"))
    yield started
    started.stop()
