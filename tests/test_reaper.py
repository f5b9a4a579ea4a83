"""Lost attempts: started again once from where they were, then failed with a word; the living are left alone."""

from types import SimpleNamespace

import pytest

from app.domain.records import Job, now
from app.queue import Queue
from app.reaper import reap
from app.settings import Settings
from app.storage.catalog import Catalog


@pytest.fixture
def queue(redis_url: str) -> Queue:
    return Queue(redis_url)


@pytest.fixture
def eager(settings: Settings) -> Settings:
    return settings.model_copy(update={"reap_grace_s": 0.0})


def running(catalog: Catalog, attempt: int = 1) -> Job:
    catalog.add(
        Job(id="j1", kind="train", spec={"kind": "train"}, created_at=now(), attempt=attempt, allowed_attempts=2)
    )
    return catalog.moved("j1", was={"queued"}, to="running", attempt=attempt, lease_s=600)


def expire(catalog: Catalog) -> None:
    """What time does to a lease that nobody renews."""
    assert catalog.redis.delete("es:lease:j1") == 1


def test_the_living_are_left_alone(catalog: Catalog, queue: Queue, eager: Settings) -> None:
    running(catalog)
    assert reap(catalog, queue, eager) == []
    assert catalog.job("j1").status == "running"


def test_a_lost_attempt_is_queued_again_once(catalog: Catalog, queue: Queue, eager: Settings) -> None:
    running(catalog)
    expire(catalog)
    assert reap(catalog, queue, eager) == ["j1"]
    again = catalog.job("j1")
    assert (again.status, again.attempt) == ("queued", 2)
    assert queue.waiting() == {"j1"}
    queue.cancel(again)
    assert queue.waiting() == set()


def test_lost_twice_is_failed_with_a_clear_error(catalog: Catalog, queue: Queue, eager: Settings) -> None:
    running(catalog, attempt=2)
    expire(catalog)
    assert reap(catalog, queue, eager) == ["j1"]
    failed = catalog.job("j1")
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error["code"], failed.error["retryable"]) == ("worker_lost", True)
    assert "2 times" in failed.error["detail"]


def test_a_lost_attempt_that_was_to_be_cancelled_is_cancelled(catalog: Catalog, queue: Queue, eager: Settings) -> None:
    running(catalog)
    catalog.moved("j1", was={"running"}, to="cancelling")
    expire(catalog)
    assert reap(catalog, queue, eager) == ["j1"]
    assert catalog.job("j1").status == "cancelled"


def test_nobody_is_declared_dead_at_first_sight(
    catalog: Catalog, queue: Queue, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("app.reaper.time", SimpleNamespace(time=lambda: clock[0]))
    patient = settings.model_copy(update={"reap_grace_s": 5.0})
    running(catalog)
    expire(catalog)
    assert reap(catalog, queue, patient) == []
    clock[0] += 4.9
    assert reap(catalog, queue, patient) == []
    catalog.renew("j1", 1, 600)  # Redis was away, not the worker
    clock[0] += 4.9
    assert reap(catalog, queue, patient) == []
    expire(catalog)
    assert reap(catalog, queue, patient) == []  # the grace begins anew
    clock[0] += 4.9
    assert reap(catalog, queue, patient) == []
    clock[0] += 0.2
    assert reap(catalog, queue, patient) == ["j1"]


def test_a_delivery_that_vanished_is_made_again(
    catalog: Catalog, queue: Queue, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.reaper.QUEUED_GRACE_S", 0.0)
    catalog.add(Job(id="j1", kind="train", spec={"kind": "train"}, created_at=now()))
    assert reap(catalog, queue, settings) == ["j1"]
    assert queue.waiting() == {"j1"}
    assert reap(catalog, queue, settings) == []
