"""Jobs are forgotten some time after their end, unless what they made exists."""

from __future__ import annotations

from pathlib import Path

from drafts import draft

from app.domain.records import Job
from app.errors import NotFound
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.registry import publish_version, remove_version
from app.storage.sweeping import sweep

LONG_AGO, DAY = "2020-01-01T00:00:00.000Z", 24 * 3600.0


def ended(catalog: Catalog, id: str, **more: object) -> None:
    made = Job.model_validate({"id": id, "kind": "train", "spec": {}, "created_at": LONG_AGO} | more)
    if made.parent:
        assert catalog.trials.add(made, 1)
    else:
        catalog.add(made)
    catalog.moved(id, was={"queued"}, to="running", attempt=1, lease_s=5)
    if made.kind != "search":
        catalog.moved(id, was={"running"}, to="succeeded", finished_at=LONG_AGO)


def there(catalog: Catalog, id: str) -> bool:
    try:
        return catalog.job(id) is not None
    except NotFound:
        return False


def test_what_ended_long_ago_is_forgotten_with_its_trials(artifacts: Artifacts, catalog: Catalog) -> None:
    ended(catalog, "plain")
    ended(catalog, "search", kind="search")
    ended(catalog, "search-1", kind="trial", parent="search")
    catalog.moved("search", was={"running"}, to="failed", finished_at=LONG_AGO)
    catalog.add(Job(id="open", kind="train", spec={}, created_at=LONG_AGO))
    ended(catalog, "lately")
    catalog.redis.hset("es:job:lately", "finished_at", '"2999-01-01T00:00:00Z"')
    sweep(artifacts, catalog, 3600, jobs_kept_s=0)
    assert there(catalog, "plain")
    sweep(artifacts, catalog, 3600, jobs_kept_s=DAY)
    assert [id for id in ("plain", "search", "search-1", "open", "lately") if there(catalog, id)] == ["open", "lately"]
    left = {key for key in catalog.redis.scan_iter("es:job*") if "plain" in key or "search" in key}
    assert left == set()
    assert {job.id for job in catalog.jobs()[0]} == {"open", "lately"}
    assert catalog.jobs(kind="trial")[0] == []


def test_a_job_is_kept_with_what_it_made(artifacts: Artifacts, catalog: Catalog, tmp_path: Path) -> None:
    ended(catalog, "maker")
    ended(catalog, "search", kind="search")
    ended(catalog, "search-1", kind="trial", parent="search")
    catalog.moved("search", was={"running"}, to="succeeded", finished_at=LONG_AGO)
    made = publish_version(artifacts, catalog, draft(artifacts, tmp_path / "in", "maker"))
    of_trial = publish_version(artifacts, catalog, draft(artifacts, tmp_path / "in", "search-1"))
    sweep(artifacts, catalog, 3600, jobs_kept_s=DAY)
    assert all(there(catalog, id) for id in ("maker", "search", "search-1"))
    for version in (made, of_trial):
        remove_version(artifacts, catalog, version.name, version.version)
    sweep(artifacts, catalog, 3600, jobs_kept_s=DAY)
    assert not any(there(catalog, id) for id in ("maker", "search", "search-1"))
