"""A version exists if and only if its manifest does; numbers are never given twice; Redis can be rebuilt."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.domain.records import Job, Made, Signature, Tensor, Version, now
from app.errors import Internal, NotFound
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.registry import (
    fetch_files,
    find_version,
    publish_version,
    put_files,
    reindex_if_empty,
    remove_version,
    sweep,
)


def draft(artifacts: Artifacts, folder: Path, job: str, name: str = "net") -> Version:
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    (folder / "a.bin").write_bytes(b"abc")
    (folder / "deep" / "b.bin").write_bytes(b"d" * 1000)
    prefix = f"models/{name}/files/{job}-1"
    files, size = put_files(artifacts, folder, prefix)
    return Version(
        name=name,
        version=1,
        format="onnx",
        folder=prefix,
        files=files,
        bytes=size,
        signature=Signature(inputs=(Tensor(name="x", shape=(-1, 4)),)),
        made_by=Made(job=job, spec={}),
        created_at=now(),
    )


def test_numbers_grow_and_are_never_given_twice(artifacts: Artifacts, catalog: Catalog, tmp_path: Path) -> None:
    first = publish_version(artifacts, catalog, draft(artifacts, tmp_path / "in", "j1"))
    second = publish_version(artifacts, catalog, draft(artifacts, tmp_path / "in", "j2"))
    assert (first.ref, second.ref) == ("net@1", "net@2")
    remove_version(artifacts, catalog, "net", 2)
    assert publish_version(artifacts, catalog, draft(artifacts, tmp_path / "in", "j3")).ref == "net@3"
    with pytest.raises(NotFound):
        catalog.version("net", 2)
    assert not list(artifacts.keys("models/net/files/j2-1"))


def test_many_publish_at_once(artifacts: Artifacts, catalog: Catalog, tmp_path: Path) -> None:
    drafts = [draft(artifacts, tmp_path / str(n), f"j{n}") for n in range(12)]
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda d: publish_version(artifacts, catalog, d), drafts))
    assert sorted(v.version for v in made) == list(range(1, 13))


def test_a_job_that_published_is_found_again(artifacts: Artifacts, catalog: Catalog, tmp_path: Path) -> None:
    made = publish_version(artifacts, catalog, draft(artifacts, tmp_path / "in", "j1"))
    assert find_version(artifacts, "net", "j1") == made
    assert find_version(artifacts, "net", "j9") is None


def test_files_come_back_verified(artifacts: Artifacts, catalog: Catalog, tmp_path: Path) -> None:
    made = publish_version(artifacts, catalog, draft(artifacts, tmp_path / "in", "j1"))
    out = fetch_files(artifacts, made.folder, made.files, tmp_path / "out")
    assert (out / "deep" / "b.bin").read_bytes() == b"d" * 1000
    artifacts.put_bytes(b"abd", f"{made.folder}/a.bin")
    with pytest.raises(Internal, match="damaged"):
        fetch_files(artifacts, made.folder, made.files, tmp_path / "out2")


def test_an_empty_redis_learns_from_the_manifests(artifacts: Artifacts, catalog: Catalog, tmp_path: Path) -> None:
    for n in range(3):
        publish_version(artifacts, catalog, draft(artifacts, tmp_path / "in", f"j{n}"))
    remove_version(artifacts, catalog, "net", 2)
    before = catalog.versions("net")
    assert reindex_if_empty(artifacts, catalog) is None
    catalog.redis.flushall()
    assert reindex_if_empty(artifacts, catalog) == {"versions": 2, "datasets": 0, "evaluations": 0}
    assert catalog.versions("net") == before


def test_the_sweeper_takes_only_what_nothing_names(artifacts: Artifacts, catalog: Catalog, tmp_path: Path) -> None:
    made = publish_version(artifacts, catalog, draft(artifacts, tmp_path / "in", "j1"))
    draft(artifacts, tmp_path / "in", "lost")
    artifacts.put_bytes(b"", "staging/u/net.pt")
    artifacts.put_bytes(b"", "checkpoints/gone/1-000001")
    assert sweep(artifacts, catalog, older_than_s=3600) == 0
    assert sweep(artifacts, catalog, older_than_s=-1) == 4
    assert set(artifacts.keys(made.folder)) == {f"{made.folder}/{f}" for f in made.files}
    assert set(artifacts.keys("models")) >= {"models/net/1/manifest.json"}


def test_what_trials_kept_goes_after_a_week_unless_a_search_may_need_it(
    artifacts: Artifacts, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("k/j-1/weights", "k/candidate.json"):
        artifacts.put_bytes(b"", f"trials/{key}")
    catalog.redis.set("es:study:gone:log_number", 0)
    catalog.add(Job(id="s", kind="search", spec={"kind": "search"}, created_at=now()))
    catalog.redis.set("es:study:s:log_number", 0)
    assert sweep(artifacts, catalog, older_than_s=3600) == 0
    assert catalog.trials.studies() == ["s"]  # whose job is there
    monkeypatch.setattr("app.storage.registry.TRIALS_KEPT_S", -1.0)
    assert sweep(artifacts, catalog, older_than_s=3600) == 0
    catalog.moved("s", was={"queued"}, to="cancelled")
    assert sweep(artifacts, catalog, older_than_s=3600) == 2
    assert list(artifacts.keys("trials")) == []
    assert catalog.trials.studies() == []
