"""What trials made, kept under the hash of all that it depends on: the same is never computed twice."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.domain.records import Dataset, Latency, Made, Metrics, Quality, Version, parse_ref
from app.errors import NotFound
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.registry import fetch_files, publish_version, put_files
from workers.context import Context

PREFIX = "trials"
CANDIDATE = "candidate.json"
# To be raised where the same spec gives something else than before.
EDITION = 1


@dataclass(frozen=True)
class Kept:
    """version: a record like that of a published version, whose files lie below trials/; None: there are only figures.
    report: what the trial said."""

    key: str
    version: Version | None
    report: dict[str, Any]


def key_of(**parts: Any) -> str:
    """The hash of everything that a result depends on, this program's edition included."""
    whole = {"edition": EDITION, "enginesmith": importlib.metadata.version("enginesmith")} | parts
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


def content_of(record: Version | Dataset) -> str:
    """The hash of what a version or a data set holds, whatever it is called."""
    fields = {"files", "format", "signature", "task", "labels", "splits", "classes", "y_dtype"}
    held = json.loads(record.model_dump_json())
    held |= {f: v for f, v in held.get("details", {}).items() if f in ("masked", "quantized")}
    fields |= {"masked", "quantized"}
    return key_of(**{name: held[name] for name in sorted(fields & set(held))})


def find(artifacts: Artifacts, key: str) -> Kept | None:
    """None where nothing was kept under the key, or not to the end."""
    with contextlib.suppress(NotFound):
        held = json.loads(artifacts.get_bytes(f"{PREFIX}/{key}/{CANDIDATE}"))
        version = Version.model_validate(held["version"]) if held["version"] else None
        return Kept(key, version, held["report"])
    return None


def keep(
    artifacts: Artifacts, key: str, by: str, folder: Path | None, draft: Mapping[str, Any], report: dict[str, Any]
) -> Kept:
    """Keeps a folder of files and the fields of its version. by: unique to this attempt. Who came first wins."""
    version: Version | None = None
    if folder is not None:
        prefix = f"{PREFIX}/{key}/{by}"
        files, size = put_files(artifacts, folder, prefix)
        version = Version.model_validate({**draft, "folder": prefix, "files": files, "bytes": size})
    held = {"version": version.model_dump(mode="json") if version else None, "report": report}
    try:
        artifacts.put_bytes(json.dumps(held).encode(), f"{PREFIX}/{key}/{CANDIDATE}", create=True)
    except FileExistsError:
        first = find(artifacts, key)
        if first is not None:
            return first
    return Kept(key, version, report)


def fetch(kept: Kept, to: Path, ctx: Context) -> tuple[Version, Path]:
    """The version and a folder with its files, verified; of an engine that was built for another GPU, with a plan for
    the one that is here. Raises NotFound, and what building that plan raises."""
    if kept.version is None:
        raise NotFound(f"the trial {kept.key[:12]} made no version")
    folder = fetch_files(ctx.artifacts, kept.version.folder, kept.version.files, to / kept.key)
    return kept.version, ctx.fitted(kept.version, folder)


def version_of(artifacts: Artifacts, key: str) -> Version:
    """The record of the version that a trial made. Raises NotFound."""
    kept = find(artifacts, key)
    if kept is None or kept.version is None:
        raise NotFound(f"nothing is kept under {key[:12]}: it was swept away", retryable=True)
    return kept.version


def publish_judged(
    artifacts: Artifacts,
    catalog: Catalog,
    key: str,
    row: Mapping[str, Any],
    *,
    parent: str,
    made_by: Made,
    details: Mapping[str, Any],
    **changes: Any,
) -> Version:
    """`publish` with the figures of the test split in place of those that the candidate was chosen by. row: what the
    role `judge` says of it; without `quality` and `latency` the version has none. Raises NotFound."""
    before = version_of(artifacts, key)
    metrics = Metrics(
        quality=Quality.model_validate(row["quality"]) if row.get("quality") else None,
        latency=tuple(Latency.model_validate(at) for at in row.get("latency", ())),
        parity=before.metrics.parity,
        layer_sparsity=before.metrics.layer_sparsity,
    )
    return publish(
        artifacts, catalog, key, name=parse_ref(parent)[0], parent=parent, made_by=made_by, metrics=metrics,
        details=before.details | dict(details), **changes,
    )  # fmt: skip


def publish(
    artifacts: Artifacts, catalog: Catalog, key: str, *, name: str, parent: str | None, made_by: Made, **changes: Any
) -> Version:
    """Makes a version of what was kept: its files are copied, its record is changed by `changes`. A repeated call for
    the same made_by.job gives the version of the first. Raises NotFound."""
    version = version_of(artifacts, key)
    folder = f"models/{name}/files/{made_by.job}-1"
    for file in version.files:
        artifacts.copy(f"{version.folder}/{file}", f"{folder}/{file}")
    draft = version.but(name=name, parent=parent, made_by=made_by, folder=folder, **changes)
    return publish_version(artifacts, catalog, draft)
