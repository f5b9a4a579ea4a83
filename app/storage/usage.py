"""What the artifact store holds, and whose it is."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from app.domain.records import Dataset, Record, Version, now
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.index import Index

_OTHER = "other"
_KINDS = frozenset({"models", "datasets", "plans", "timings", "trials", "checkpoints", "staging"})


class Held(Record):
    bytes: int = 0
    objects: int = 0


class Usage(Record):
    """by: top folder of the store → what lies there. keys: the id of an API key → bytes of the versions and data sets
    that were made with it. Files of a version that another one shares are counted for both."""

    measured_at: str
    total: Held
    by: dict[str, Held]
    versions: int
    datasets: int
    keys: dict[str, int]


def measure(artifacts: Artifacts, catalog: Catalog) -> Usage:
    """Lists the whole store. Raises Unavailable."""
    by = {kind: [0, 0] for kind in (*sorted(_KINDS), _OTHER)}
    for entry in artifacts.entries(""):
        top = entry.key.partition("/")[0]
        of = by[top if top in _KINDS else _OTHER]
        of[0] += entry.bytes
        of[1] += 1
    counts, keys = {Version: 0, Dataset: 0}, dict[str, int]()
    for record in _records(catalog):
        counts[type(record)] += 1
        if record.key is not None:
            keys[record.key] = keys.get(record.key, 0) + record.bytes
    held = {kind: Held(bytes=size, objects=objects) for kind, (size, objects) in by.items()}
    total = Held(bytes=sum(h.bytes for h in held.values()), objects=sum(h.objects for h in held.values()))
    return Usage(measured_at=now(), total=total, by=held, versions=counts[Version], datasets=counts[Dataset], keys=keys)


def bytes_of(catalog: Catalog, key: str, but: Collection[str] = ()) -> int:
    """Of the versions and data sets that were made with an API key, and of uploads that are being imported. but: places
    in the store that do not count."""
    made = [record for record in _records(catalog) if record.key == key]
    done = {record.made_by.job for record in made if isinstance(record, Version)}
    imports = [job.spec for job in catalog.open_jobs_of(key) if job.kind == "import" and job.id not in done]
    kept = sum(record.bytes for record in made if record.folder not in but)
    return kept + sum(int(spec["bytes"]) for spec in imports if spec["upload"] not in but)


def _records(index: Index) -> Iterator[Version | Dataset]:
    for name in _all(index.models):
        yield from index.versions(name)
    for name in _all(index.datasets):
        yield from index.dataset_versions(name)


def _all(page: object) -> Iterator[str]:
    cursor = None
    while True:
        names, cursor = page(limit=500, cursor=cursor)  # type: ignore[operator]
        yield from names
        if cursor is None:
            return
