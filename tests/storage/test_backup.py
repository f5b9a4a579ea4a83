"""What Redis alone holds, in a file and back."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from app.domain.records import Job, now
from app.errors import Conflict, Unprocessable
from app.storage.backup import KEPT, NOT_KEPT, backup, restore
from app.storage.catalog import Catalog


def job(id: str, **more: object) -> Job:
    return Job.model_validate({"id": id, "kind": "train", "spec": {"kind": "train"}, "created_at": now()} | more)


@pytest.fixture
def busy(catalog: Catalog) -> Catalog:
    """A job that ended, one that runs, one that waits for two trials of which one has ended."""
    catalog.add(job("done"))
    catalog.moved("done", was={"queued"}, to="running", attempt=1, lease_s=50, started_at=now())
    catalog.note("done", 1, "metrics", {"loss": 0.5}, row={"epoch": 1, "loss": 0.5})
    catalog.moved("done", was={"running"}, to="succeeded", attempt=1)
    catalog.add(job("runs", key="k1"))
    catalog.moved("runs", was={"queued"}, to="running", attempt=1, lease_s=50)
    catalog.add(job("parent", kind="search"))
    catalog.moved("parent", was={"queued"}, to="running", attempt=1, lease_s=50)
    for name in ("parent-1", "parent-2"):
        catalog.trials.add(job(name, kind="trial", parent="parent"), 1)
    catalog.moved("parent-1", was={"queued"}, to="running", attempt=1, lease_s=50)
    catalog.moved("parent-1", was={"running"}, to="succeeded", attempt=1)
    catalog.remember("idem", "fingerprint", "done")
    return catalog


def read(file: Path) -> list[str]:
    with gzip.open(file, "rt") as opened:
        return opened.read().splitlines()


def test_all_of_it_comes_back(busy: Catalog, tmp_path: Path) -> None:
    ids = ("done", "runs", "parent", "parent-1", "parent-2")
    before = {id: busy.job(id) for id in ids}
    events = busy.events("done")
    file = tmp_path / "redis.backup"
    count = backup(busy, file)
    assert file.stat().st_mode & 0o077 == 0
    busy.redis.flushall()
    assert restore(busy, file) == count
    assert {id: busy.job(id) for id in ids} == before
    assert busy.events("done") == events
    assert {job.id for job in busy.open_jobs()} == {"runs", "parent", "parent-2"}
    assert set(busy.trials.of("parent")) == {"1", "2"}
    assert [job.id for job in busy.jobs()[0]] == [job.id for job in sorted(
        (before[id] for id in ("done", "runs", "parent")), key=lambda j: (j.created_at, j.id), reverse=True
    )]  # fmt: skip
    assert busy.remember("idem", "another", "x") == ("fingerprint", "done")
    assert 0 < busy.redis.ttl("es:idempotency:idem") <= 24 * 3600
    assert not busy.leased("runs")  # whoever ran it is gone: the reaper starts it again
    assert busy.open_of("k1") == 1


def test_every_key_is_of_a_kind_that_is_known(busy: Catalog) -> None:
    unknown = [key for key in busy.redis.scan_iter("es:*") if not key.startswith((*KEPT, *NOT_KEPT))]
    assert unknown == []


def test_what_is_there_is_not_lost_by_mistake(busy: Catalog, tmp_path: Path) -> None:
    file = tmp_path / "redis.backup"
    backup(busy, file)
    busy.add(job("later"))
    with pytest.raises(Conflict, match="holds jobs already"):
        restore(busy, file)
    assert busy.job("later")
    restore(busy, file, replace=True)
    assert "later" not in {job.id for job in busy.jobs()[0]}
    assert busy.job("done").status == "succeeded"


def test_a_job_that_ended_while_the_file_was_written_is_not_open(busy: Catalog, tmp_path: Path) -> None:
    file = tmp_path / "redis.backup"
    backup(busy, file)
    lines = [json.loads(line) for line in read(file)]
    for line in lines:
        if line.get("key") == "es:job:parent-2":
            line["value"]["status"] = "succeeded"
    with gzip.open(file, "wt") as out:
        out.write("\n".join(json.dumps(line) for line in lines) + "\n")
    restore(busy, file, replace=True)
    assert {job.id for job in busy.open_jobs()} == {"runs", "parent"}


@pytest.mark.parametrize("harm", ["cut", "end", "count", "foreign", "text", "absent"])
def test_a_file_that_is_not_whole_changes_nothing(harm: str, busy: Catalog, tmp_path: Path) -> None:
    file = tmp_path / "redis.backup"
    backup(busy, file)
    lines = read(file)
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-20])
    elif harm == "text":
        file.write_text("not a backup")
    elif harm == "absent":
        file.unlink()
    else:
        lines = {
            "end": lines[:-1], "count": [lines[0], *lines[2:]],
            "foreign": [lines[0], json.dumps({"key": "rq:queue:cpu", "type": "list", "value": ["x"]}), *lines[1:]],
        }[harm]  # fmt: skip
        with gzip.open(file, "wt") as out:
            out.write("\n".join(lines) + "\n")
    busy.redis.delete("es:jobs")
    with pytest.raises(Unprocessable, match="no whole backup"):
        restore(busy, file)
    assert not busy.redis.exists("es:jobs")
    assert not busy.redis.exists("rq:queue:cpu")
