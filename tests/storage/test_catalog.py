"""Jobs change state by one compare-and-set; who has lost the lease cannot speak any more."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from app.domain.deployments import Deployment
from app.domain.keys import Limits, make
from app.domain.records import Job, now
from app.errors import NotFound, Overloaded, Unavailable, Unprocessable
from app.settings import Settings
from app.storage.catalog import Catalog, Fenced, Stale


def job(id: str = "j1", **more: object) -> Job:
    return Job.model_validate({"id": id, "kind": "train", "spec": {"kind": "train"}, "created_at": now()} | more)


def test_a_job_comes_back_as_it_went_in(catalog: Catalog) -> None:
    made = catalog.add(job(model="digits@1", metrics={"loss": 0.5}))
    assert catalog.job("j1") == made
    with pytest.raises(NotFound, match="j2"):
        catalog.job("j2")


def test_only_one_wins_a_change_of_state(catalog: Catalog) -> None:
    catalog.add(job())
    started = catalog.moved("j1", was={"queued"}, to="running", attempt=1, lease_s=5, started_at=now())
    assert (started.status, started.phase) == ("running", "running")
    with pytest.raises(Stale):
        catalog.moved("j1", was={"queued"}, to="running", attempt=1)
    with pytest.raises(Stale):
        catalog.moved("j1", was={"running"}, to="succeeded", attempt=2)


def test_a_job_that_is_tried_again_takes_a_place_of_whoever_asks(catalog: Catalog) -> None:
    one, _ = make("one", ("write",), Limits(jobs=1))
    other, _ = make("other", ("write",), Limits(jobs=2))
    for id in ("j1", "j2", "j3"):
        catalog.moved(catalog.add(job(id, key=one.owner)).id, was={"queued"}, to="failed")
    failed = [catalog.job(id) for id in ("j1", "j2", "j3")]
    with ThreadPoolExecutor(3) as pool:
        tries = [pool.submit(catalog.again, of, 2, one) for of in failed]
    assert [type(of.exception()) for of in tries].count(Overloaded) == 2
    again, *rest = sorted(failed, key=lambda of: catalog.job(of.id).status, reverse=True)
    assert catalog.job(again.id).status == "queued"
    assert catalog.again(rest[0], 2, other).key == other.owner
    assert (catalog.open_of(one.owner), catalog.open_of(other.owner)) == (1, 1)
    with pytest.raises(Overloaded, match="may have 1"):
        catalog.add(job("j4", key=one.owner), 1)
    assert catalog.add(job("j5", key=other.owner), 2)


def test_the_lease_speaks_for_one_attempt(catalog: Catalog) -> None:
    catalog.add(job())
    catalog.moved("j1", was={"queued"}, to="running", attempt=1, lease_s=5)
    assert catalog.leased("j1")
    assert catalog.renew("j1", 1, 5) == "running"
    catalog.moved("j1", was={"running"}, to="queued", attempt=1, next_attempt=2)
    assert not catalog.leased("j1")
    with pytest.raises(Fenced):
        catalog.renew("j1", 1, 5)
    catalog.moved("j1", was={"queued"}, to="running", attempt=2, lease_s=5)
    catalog.note("j1", 1, "log", {"text": "I am an orphan"})
    assert [d for _, t, d in catalog.events("j1") if t == "log"] == []


def test_events_are_kept_in_order_and_resume(catalog: Catalog) -> None:
    catalog.add(job())
    catalog.moved("j1", was={"queued"}, to="running", attempt=1, lease_s=5)
    catalog.note("j1", 1, "metrics", {"epoch": 1}, row={"epoch": 1}, metrics={"epoch": 1})
    events = catalog.events("j1")
    assert [t for _, t, _ in events] == ["state", "state", "metrics"]
    assert [t for _, t, _ in catalog.events("j1", after=events[1][0])] == ["metrics"]
    assert catalog.events("j1", after=events[2][0], block_ms=10) == []
    assert catalog.job("j1").history == [{"epoch": 1}]
    catalog.trim_history("j1", 0)
    assert catalog.job("j1").history == []


def test_lists_are_newest_first_and_paged(catalog: Catalog) -> None:
    for n in range(7):
        catalog.add(job(f"j{n}", created_at=f"2026-01-01T00:00:0{n % 3}.000Z", model=f"m{n % 2}@1"))
    seen, cursor = [], None
    while True:
        page, cursor = catalog.jobs(limit=2, cursor=cursor)
        seen += [j.id for j in page]
        if cursor is None:
            break
    assert seen == ["j5", "j2", "j4", "j1", "j6", "j3", "j0"]
    assert {j.id for j in catalog.jobs(model="m1")[0]} == {"j1", "j3", "j5"}
    assert catalog.jobs(status="failed")[0] == []
    with pytest.raises(Unprocessable):
        catalog.jobs(cursor="%%%")


def test_idempotency_keeps_the_first(catalog: Catalog) -> None:
    assert catalog.remember("k", "f1", "j1") == ("f1", "j1")
    assert catalog.remember("k", "f2", "j2") == ("f1", "j1")


def test_a_deployment_changes_by_generation(catalog: Catalog) -> None:
    first = Deployment(name="d", model="m@1", created_at=now(), updated_at=now())
    catalog.put_deployment(first, was_generation=None)
    with pytest.raises(Stale):
        catalog.put_deployment(first, was_generation=None)
    second = catalog.put_deployment(first.but(model="m@2", generation=2), was_generation=1)
    assert catalog.deployments() == [second]
    with pytest.raises(Stale):
        catalog.put_deployment(second.but(generation=3), was_generation=1)


def test_a_redis_that_is_gone_is_unavailable(tmp_path: object) -> None:
    lost = Catalog.open(Settings(), "redis://127.0.0.1:1", patience_s=0.1)
    with pytest.raises(Unavailable, match="Redis"):
        lost.job("j1")
