"""A version exists if and only if its manifest does; numbers are never given twice; Redis can be rebuilt."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from drafts import draft

from app.errors import Internal, NotFound
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.registry import (
    fetch_files,
    find_version,
    publish_version,
    reindex,
    reindex_if_lost,
    remove_version,
)
from app.storage.sweeping import sweep


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
    catalog.note_memory()
    assert reindex_if_lost(artifacts, catalog) is None
    catalog.redis.flushall()
    assert reindex_if_lost(artifacts, catalog) == {
        "versions": 2,
        "datasets": 0,
        "evaluations": 0,
        "deployments": 0,
        "webhooks": 0,
    }
    assert catalog.versions("net") == before


def test_what_is_damaged_keeps_nothing_else_from_coming_back(
    artifacts: Artifacts, catalog: Catalog, tmp_path: Path
) -> None:
    for n in range(3):
        publish_version(artifacts, catalog, draft(artifacts, tmp_path / "in", f"j{n}"))
    artifacts.put_bytes(b'{"name": "net', "models/net/2/manifest.json")
    for job, told in (
        ("b", '{"created_at": "2026-01-02T", "acc": 2}'),
        ("a", '{"created_at": "2026-01-03T", "acc": 3}'),
    ):
        artifacts.put_bytes(told.encode(), f"models/net/3/evaluations/{job}.json")
    artifacts.put_bytes(b"[", "models/net/3/evaluations/c.json")
    catalog.redis.flushall()
    found = reindex(artifacts, catalog)
    assert (found["versions"], found["evaluations"]) == (2, 2)
    assert [of["acc"] for of in catalog.evaluations("net@3")] == [3]  # the newest by its own word
    assert find_version(artifacts, "net", "j0") is not None
    assert sweep(artifacts, catalog, older_than_s=-1) == 0  # nobody knows which files the damaged one names
    assert publish_version(artifacts, catalog, draft(artifacts, tmp_path / "in", "j4")).version == 4
