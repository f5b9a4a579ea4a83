"""Plans for kinds of GPU other than the one that a version's own was built for: what tells one from another.

A plan is a cache object, not a version: the version's graph, compiled once more with the same options.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

from app.domain.records import Record, Version

# What of a version's details its plan depends on, beside the graph itself.
_BUILT_WITH = ("precision", "max_batch", "shapes", "buckets", "optimization_level", "workspace_bytes", "sparse")
_SLUG = 80


class KeptPlan(Record):
    """A plan in the store. key: see `key_of`. source: sha256 of the graph that it was built from. built_for: as a
    version's. folder, files: where its files are, and their sha256."""

    key: str
    source: str
    built_for: dict[str, object]
    folder: str
    files: dict[str, str]
    bytes: int
    job: str
    created_at: str


def key_of(version: Version, source: str, ties: Mapping[str, str]) -> str:
    """Names the plan of a version for what `ties` says. source: the name of the version's graph among its files."""
    of = {name: version.details.get(name) for name in _BUILT_WITH}
    told = json.dumps([version.format, version.files.get(source), of, dict(ties)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def queue_of_runtime(runtime: str) -> str:
    """The queue of all workers that have that runtime and a GPU for it."""
    return f"gpu-{runtime}"


def runtime_of_queue(queue: str) -> str | None:
    """What `queue_of_runtime` was given; None for the queues of no runtime."""
    return queue.removeprefix("gpu-") if queue.startswith("gpu-") else None


def pools_of(told: str | None) -> tuple[str, ...]:
    """ENGINESMITH_POOLS ("gpu, gpu-tensorrt") → the queues."""
    return tuple(name.strip() for name in (told or "").split(",") if name.strip())


def queue_of(runtime: str, ties: Mapping[str, str]) -> str:
    """The queue whose workers build plans for that kind of GPU with that version."""
    told = "-".join(ties[name] for name in sorted(ties))
    return f"{queue_of_runtime(runtime)}-{re.sub(r'[^a-z0-9.]+', '-', told.lower()).strip('-')[:_SLUG]}"
