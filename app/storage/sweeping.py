"""Takes away what nobody names any more: uploads, checkpoints, files of versions that never came to be, trials, and
what builds have measured."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from app.domain.records import Dataset, Job, Version
from app.errors import NotFound
from app.storage.artifacts import Artifacts, Entry
from app.storage.catalog import Catalog
from app.storage.plans import sweep_plans
from app.storage.registry import all_datasets, all_versions
from app.storage.retention import forget_jobs
from app.storage.timings import sweep_timings

TRIALS_KEPT_S = 7 * 24 * 3600.0
# What a trial kept is safe for so long whatever it takes: whoever made it, or found it, has not said so yet.
TRIALS_SAFE_S = 3600.0
_WAITING = ("search", "optimize")
_KEY = re.compile(r"\b[0-9a-f]{64}\b")


def sweep(
    artifacts: Artifacts, catalog: Catalog, older_than_s: float, trials_bytes: int = 0, jobs_kept_s: float = 0
) -> int:
    """Removes uploads, checkpoints and files that nothing names, once they are old, and what trials have kept; says how
    many objects went. trials_bytes: what all trials together may keep; 0: no bound. jobs_kept_s: for how long a job
    that has ended is remembered; 0: for ever."""
    before = datetime.now(UTC) - timedelta(seconds=older_than_s)
    # In this order nothing is missed: whoever wrote a file that is seen here is open still, or has ended, and then what
    # it published is seen below. A file may be older than its job: those of trials are linked.
    old = [
        entry
        for prefix in ("staging", "checkpoints", "models", "datasets")
        for entry in _old(artifacts, prefix, before)
    ]
    open_jobs = list(catalog.open_jobs())
    open_ids = {job.id for job in open_jobs}
    uploads = {str(job.spec.get("upload")) for job in open_jobs}
    damaged: set[str] = set()
    records: list[Version | Dataset] = [*all_versions(artifacts, damaged), *all_datasets(artifacts, damaged)]
    unread = {place.rpartition("/")[0] for place in damaged}  # nobody can say which of their files a manifest names
    named = {record.folder for record in records} | {f"checkpoints/{id}" for id in open_ids}
    gone = 0
    for key in old:
        parts = key.split("/")
        holder = "/".join(parts[:2]) if parts[0] == "checkpoints" else "/".join(parts[:4])
        job = parts[3].rsplit("-", 1)[0] if parts[0] == "models" else ""
        spared = holder in named or "/".join(parts[:2]) in unread
        if not spared and key not in uploads and job not in open_ids:
            artifacts.delete(key)
            gone += 1
    if not unread:
        gone += sweep_plans(artifacts, {sha for record in records for sha in record.files.values()}, open_ids, before)
    gone += sweep_timings(artifacts, catalog.redis, before)
    _sweep_studies(catalog)
    if jobs_kept_s and not unread:
        versions = [record for record in records if isinstance(record, Version)]
        evaluations = (of for version in versions for of in catalog.evaluations(version.ref))
        makers = {version.made_by.job for version in versions} | {str(of.get("job")) for of in evaluations}
        forget_jobs(catalog, makers, jobs_kept_s)
    return gone + _sweep_trials(artifacts, _in_use(catalog, open_jobs), trials_bytes)


def _old(artifacts: Artifacts, prefix: str, before: datetime) -> list[str]:
    """What lies there for so long and may go, if nothing names it: no manifests."""
    whole = prefix in ("staging", "checkpoints")
    entries = ((entry.key, entry.key.split("/")) for entry in artifacts.entries(prefix) if entry.at < before)
    return [key for key, parts in entries if whole or (len(parts) > 4 and parts[2] == "files")]


def _in_use(catalog: Catalog, open_jobs: Iterable[Job]) -> set[str]:
    """What jobs that wait for trials may come back to: everything that a trial of theirs has named."""
    return {
        key
        for parent in open_jobs
        if parent.kind in _WAITING
        for trial in catalog.trials.of(parent.id).values()
        for key in _KEY.findall(trial.model_dump_json(include={"spec", "result"}))
    }


def _sweep_trials(artifacts: Artifacts, in_use: set[str], most: int) -> int:
    """What is not in use, oldest first: after a week, or as soon as all together take too much."""
    held: dict[str, list[Entry]] = {}
    for entry in artifacts.entries("trials"):
        parts = entry.key.split("/")
        held.setdefault("/".join(parts[1:3]) if parts[1] == "shared" else parts[1], []).append(entry)
    newest = {name: max(entry.at for entry in entries) for name, entries in held.items()}
    total = sum(entry.bytes for entries in held.values() for entry in entries)
    old, safe = (datetime.now(UTC) - timedelta(seconds=s) for s in (TRIALS_KEPT_S, TRIALS_SAFE_S))
    gone = 0
    for name in sorted(held, key=lambda name: newest[name]):
        at = newest[name]
        if name in in_use or not (at < old or (most and total > most and at < safe)):
            continue
        entries = held[name]
        # What names the others goes first: nobody then finds half of it.
        artifacts.delete(*sorted((e.key for e in entries), key=lambda key: not key.endswith("/candidate.json")))
        total -= sum(entry.bytes for entry in entries)
        gone += len(entries)
    return gone


def _sweep_studies(catalog: Catalog) -> None:
    """Journals of searches that ended a week ago."""
    before = datetime.now(UTC) - timedelta(seconds=TRIALS_KEPT_S)
    for id in catalog.trials.studies():
        try:
            ended = catalog.brief(id).finished_at
        except NotFound:
            ended = "1970-01-01T00:00:00Z"
        if ended is not None and datetime.fromisoformat(ended) < before:
            catalog.trials.drop_study(id)
