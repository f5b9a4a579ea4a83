"""What exists: publishing, fetching and removing versions and data sets. A manifest is put last, create-only."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from app.domain.records import Dataset, Version, now
from app.errors import Internal, NotFound
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.kept_deployments import restore_deployments
from app.storage.kept_webhooks import restore_webhooks

MANIFEST = "manifest.json"
TOMBSTONE = "tombstone.json"


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
    for n in sorted(numbers(artifacts, f"models/{name}"), reverse=True):
        version = read_version(artifacts, name, n)
        if version and version.made_by.job == job:
            return version
    return None


def read_version(artifacts: Artifacts, name: str, n: int) -> Version | None:
    """From its manifest; None where there is none, or a tombstone."""
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
    many of each there were."""
    found = {"versions": 0, "datasets": 0, "evaluations": 0, "deployments": 0, "webhooks": 0}
    for name in artifacts.folders("models"):
        for n in numbers(artifacts, f"models/{name}"):
            if version := read_version(artifacts, name, n):
                catalog.put_version(version)
                found["versions"] += 1
                entries = artifacts.entries(f"models/{name}/{n}/evaluations")
                for entry in sorted(entries, key=lambda entry: entry.at):
                    catalog.put_evaluation(version.ref, json.loads(artifacts.get_bytes(entry.key)))
                    found["evaluations"] += 1
    for name in artifacts.folders("datasets"):
        for n in numbers(artifacts, f"datasets/{name}"):
            if dataset := read_dataset(artifacts, name, n):
                catalog.put_dataset(dataset)
                found["datasets"] += 1
    found["deployments"] = restore_deployments(artifacts, catalog)
    found["webhooks"] = restore_webhooks(artifacts, catalog)
    catalog.note_memory()
    return found


def reindex_if_lost(artifacts: Artifacts, catalog: Catalog) -> dict[str, int] | None:
    """A Redis that is new, or has lost what it held, learns it from the store."""
    return None if catalog.remembers() else reindex(artifacts, catalog)


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
