"""What exists: publishing, fetching and removing versions and data sets. A manifest is put last, create-only."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from app.domain.records import Dataset, Version, now
from app.errors import Internal, NotFound
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.kept_deployments import restore_deployments
from app.storage.kept_webhooks import restore_webhooks

log = logging.getLogger("enginesmith.registry")
MANIFEST = "manifest.json"
TOMBSTONE = "tombstone.json"
_Read = TypeVar("_Read", Version, Dataset)


def put_files(artifacts: Artifacts, folder: Path, prefix: str) -> tuple[dict[str, str], int]:
    """Uploads a whole folder below a prefix, but for links: ({relative path: sha256}, bytes)."""
    files: dict[str, str] = {}
    total = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        name = path.relative_to(folder).as_posix()
        files[name], size = artifacts.put_file(path, f"{prefix}/{name}")
        total += size
    return files, total


def fetch_files(artifacts: Artifacts, prefix: str, files: Mapping[str, str], to: Path) -> Path:
    """Downloads files into a folder and verifies each sha256. Raises NotFound; Internal for a damaged one."""
    for name, sha256 in files.items():
        path = to / PurePosixPath(name)
        artifacts.fetch(f"{prefix}/{name}", path)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise Internal(f"{prefix}/{name} is damaged: its sha256 is {found}, not {sha256}", code="damaged_artifact")
    return to


def publish_version(artifacts: Artifacts, catalog: Catalog, draft: Version) -> Version:
    """Makes the version exist under the next number; `draft.version` is ignored, its files are in the store already.

    A repeated call of the same job finds what it published before.
    """
    published = find_version(artifacts, draft.name, draft.made_by.job)
    with contextlib.suppress(NotFound):
        draft = draft.but(key=catalog.brief(draft.made_by.job).key)
    while published is None:
        numbered = draft.but(version=_newest(artifacts, f"models/{draft.name}") + 1)
        with contextlib.suppress(FileExistsError):
            key = f"models/{draft.name}/{numbered.version}/{MANIFEST}"
            artifacts.put_bytes(numbered.model_dump_json(indent=1).encode(), key, create=True)
            published = numbered
    catalog.put_version(published)
    return published


def find_version(artifacts: Artifacts, name: str, job: str) -> Version | None:
    """The version that a job has published, newest first. Deleted ones are not found."""
    versions = _readable(read_version, artifacts, f"models/{name}", newest_first=True)
    return next((version for version in versions if version.made_by.job == job), None)


def read_version(artifacts: Artifacts, name: str, n: int) -> Version | None:
    """From its manifest; None where there is none, or a tombstone. Raises ValueError for one that is damaged, or of a
    newer Enginesmith."""
    text = _manifest(artifacts, f"models/{name}/{n}")
    return Version.model_validate_json(text) if text else None


def publish_dataset(artifacts: Artifacts, catalog: Catalog, draft: Dataset) -> Dataset:
    """Like publish_version."""
    while True:
        numbered = draft.but(version=_newest(artifacts, f"datasets/{draft.name}") + 1)
        with contextlib.suppress(FileExistsError):
            key = f"datasets/{draft.name}/{numbered.version}/{MANIFEST}"
            artifacts.put_bytes(numbered.model_dump_json(indent=1).encode(), key, create=True)
            catalog.put_dataset(numbered)
            return numbered


def remove_version(artifacts: Artifacts, catalog: Catalog, name: str, n: int) -> None:
    """Tombstone first, then the index, the manifest and the files. Raises NotFound."""
    version = catalog.version(name, n)
    _bury(artifacts, f"models/{name}/{n}")
    catalog.drop_version(name, n)
    artifacts.delete(f"models/{name}/{n}/{MANIFEST}")
    artifacts.delete_all(f"models/{name}/{n}/evaluations")
    artifacts.delete_all(version.folder)


def remove_dataset(artifacts: Artifacts, catalog: Catalog, name: str, n: int | None) -> None:
    """One version, or all of them. Raises NotFound."""
    for dataset in catalog.dataset_versions(name) if n is None else [catalog.dataset(name, n)]:
        _bury(artifacts, f"datasets/{name}/{dataset.version}")
        catalog.drop_dataset(name, dataset.version)
        artifacts.delete(f"datasets/{name}/{dataset.version}/{MANIFEST}")
        artifacts.delete_all(dataset.folder)


def reindex(artifacts: Artifacts, catalog: Catalog) -> dict[str, int]:
    """Rebuilds the index in Redis from the manifests, with the deployments and webhooks that it does not know; says how
    many of each there were. What is damaged is told in the log, and keeps nothing else from coming back."""
    found = {"versions": 0, "datasets": 0, "evaluations": 0, "deployments": 0, "webhooks": 0}
    for version in all_versions(artifacts):
        catalog.put_version(version)
        found["versions"] += 1
        for evaluation in _evaluations(artifacts, version):
            catalog.put_evaluation(version.ref, evaluation)
            found["evaluations"] += 1
    for dataset in all_datasets(artifacts):
        catalog.put_dataset(dataset)
        found["datasets"] += 1
    found["deployments"] = restore_deployments(artifacts, catalog)
    found["webhooks"] = restore_webhooks(artifacts, catalog)
    catalog.note_memory()
    return found


def reindex_if_lost(artifacts: Artifacts, catalog: Catalog) -> dict[str, int] | None:
    """A Redis that is new, or has lost what it held, learns it from the store."""
    return None if catalog.remembers() else reindex(artifacts, catalog)


def all_versions(artifacts: Artifacts, damaged: set[str] | None = None) -> Iterator[Version]:
    """Those that can be read. damaged: gets the places (`models/NAME/N`) of the others."""
    for name in artifacts.folders("models"):
        yield from _readable(read_version, artifacts, f"models/{name}", damaged)


def all_datasets(artifacts: Artifacts, damaged: set[str] | None = None) -> Iterator[Dataset]:
    """Like all_versions."""
    for name in artifacts.folders("datasets"):
        yield from _readable(read_dataset, artifacts, f"datasets/{name}", damaged)


def _readable(
    read: Callable[[Artifacts, str, int], _Read | None],
    artifacts: Artifacts,
    place: str,
    damaged: set[str] | None = None,
    newest_first: bool = False,
) -> Iterator[_Read]:
    name = place.partition("/")[2]
    for n in sorted(numbers(artifacts, place), reverse=newest_first):
        try:
            found = read(artifacts, name, n)
        except ValueError:
            log.error("%s/%d/%s is damaged, or of a newer version, and is left out", place, n, MANIFEST)
            if damaged is not None:
                damaged.add(f"{place}/{n}")
            continue
        if found is not None:
            yield found


def _evaluations(artifacts: Artifacts, version: Version) -> list[dict[str, Any]]:
    """By their age."""
    found = []
    for key in artifacts.keys(f"models/{version.name}/{version.version}/evaluations"):
        try:
            evaluation = json.loads(artifacts.get_bytes(key))
            found.append((str(evaluation["created_at"]), evaluation))
        except NotFound:
            continue
        except (ValueError, KeyError, TypeError):
            log.error("%s is damaged, and is left out", key)
    return [evaluation for _, evaluation in sorted(found, key=lambda of: of[0])]


def _bury(artifacts: Artifacts, place: str) -> None:
    with contextlib.suppress(FileExistsError):
        artifacts.put_bytes(b'{"deleted_at": "%s"}' % now().encode(), f"{place}/{TOMBSTONE}", create=True)


def read_dataset(artifacts: Artifacts, name: str, n: int) -> Dataset | None:
    """Like read_version."""
    text = _manifest(artifacts, f"datasets/{name}/{n}")
    return Dataset.model_validate_json(text) if text else None


def _manifest(artifacts: Artifacts, place: str) -> bytes | None:
    with contextlib.suppress(NotFound):
        text = artifacts.get_bytes(f"{place}/{MANIFEST}")
        try:
            artifacts.size(f"{place}/{TOMBSTONE}")
        except NotFound:
            return text
    return None


def numbers(artifacts: Artifacts, place: str) -> list[int]:
    """Of the versions below `models/name` or `datasets/name`, deleted ones too."""
    return sorted(int(name) for name in artifacts.folders(place) if name.isdecimal())


def _newest(artifacts: Artifacts, place: str) -> int:
    return max(numbers(artifacts, place), default=0)
