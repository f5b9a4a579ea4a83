"""Deployments come back to a Redis that lost them; those that were deleted do not."""

from __future__ import annotations

import pytest

from app.domain.deployments import Deployment
from app.domain.records import now
from app.errors import InsufficientStorage
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.kept_deployments import Mirror, forget_deployment, keep_deployment
from app.storage.registry import reindex, reindex_if_lost


def made(name: str, **fields: object) -> Deployment:
    return Deployment.model_validate(
        {"name": name, "model": "net@1", "created_at": now(), "updated_at": now()} | fields
    )


def test_what_was_wanted_last_comes_back(artifacts: Artifacts, catalog: Catalog) -> None:
    mirror = Mirror(artifacts, catalog)
    reindex(artifacts, catalog)
    first = catalog.put_deployment(made("a"), was_generation=None)
    gone = catalog.put_deployment(made("b"), was_generation=None)
    mirror.look()
    second = catalog.put_deployment(first.but(model="net@2", generation=2), was_generation=1)
    mirror.look()
    forget_deployment(artifacts, gone.name)
    catalog.drop_deployment(gone.name)
    catalog.redis.flushall()
    mirror.look()  # before anybody has noticed
    assert (reindex_if_lost(artifacts, catalog) or {})["deployments"] == 1
    assert catalog.deployments() == [second]
    assert reindex_if_lost(artifacts, catalog) is None


def test_what_is_there_is_not_replaced(artifacts: Artifacts, catalog: Catalog) -> None:
    keep_deployment(artifacts, made("a"))
    newer = catalog.put_deployment(made("a", model="net@7"), was_generation=None)
    assert reindex(artifacts, catalog)["deployments"] == 0
    assert catalog.deployments() == [newer]


def test_one_that_is_damaged_keeps_no_other_back(artifacts: Artifacts, catalog: Catalog) -> None:
    artifacts.put_bytes(b"{", "deployments/a.json")
    keep_deployment(artifacts, made("b"))
    assert reindex(artifacts, catalog)["deployments"] == 1


def test_what_could_not_be_written_is_written_later(
    artifacts: Artifacts, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = Mirror(artifacts, catalog)
    catalog.put_deployment(made("a"), was_generation=None)

    def full(*_: object, **__: object) -> None:
        raise InsufficientStorage("the artifact store is full")

    with monkeypatch.context() as patched:
        patched.setattr(artifacts, "put_bytes", full)
        mirror.look()
    assert not list(artifacts.keys("deployments"))
    mirror.look()
    assert list(artifacts.keys("deployments")) == ["deployments/a.json"]
