"""Fixtures over real parts: an embedded store, an artifact store on disk, a whole service as child processes."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import redis
from running import Service, start_service

from app.embedded import EmbeddedStore
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog

ROOT = Path(__file__).resolve().parents[1]
# The same examples in every run, however long one takes: a new one must not break the tests of another change.
hypothesis.settings.register_profile(
    "steady", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Whatever is drawn without a seed of its own is the same, whichever tests ran before."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def _store() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="es-store-") as folder:
        store = EmbeddedStore(Path(folder))
        url = store.start()
        # Nothing here outlives the run, and a disk that is busy must not keep an answer waiting.
        with redis.Redis.from_url(url) as client:
            client.config_set("appendonly", "no")
        yield url
        store.stop()


@pytest.fixture
def redis_url(_store: str) -> str:
    """A real, empty server."""
    with redis.Redis.from_url(_store) as client:
        client.flushall()
    return _store


@pytest.fixture
def settings(tmp_path: Path, redis_url: str) -> Settings:
    # Nobody reaps behind a test's back: jobs that it moves by hand have no lease.
    return Settings(data=tmp_path / "data", redis_url=redis_url, threads=1, reap_s=3600)


@pytest.fixture
def artifacts(settings: Settings) -> Artifacts:
    return Artifacts(settings.artifacts_url)


@pytest.fixture
def catalog(settings: Settings, redis_url: str) -> Iterator[Catalog]:
    opened = Catalog.open(settings, redis_url, patience_s=60)
    yield opened
    opened.redis.close()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Other people's checkpoints and data, where they are at hand."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data, which is not here")
    return folder


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests that share it."""
    started = start_service(tmp_path_factory.mktemp("service"))
    yield started
    started.stop()


@pytest.fixture(scope="session")
def digits() -> dict[str, np.ndarray]:
    """scikit-learn's digits, 8×8 in 28×28, as x [N, 1, 28, 28] in 0…1 and y."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x = np.zeros((len(found.images), 1, 28, 28), np.float32)
    x[:, 0, 2:26, 2:26] = found.images.repeat(3, axis=1).repeat(3, axis=2) / 16
    return {"x": x, "y": found.target.astype(np.int64)}


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes by the name of their argument: what has a time or seed inside is named alike in each process of a run."""
    return argname if isinstance(val, bytes) else None
