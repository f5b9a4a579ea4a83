"""Plans for further kinds of GPU, in the store: one manifest each, put last and create-only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from datetime import datetime

from app.domain.plans import KeptPlan
from app.errors import NotFound
from app.storage.artifacts import Artifacts

PLACE = "plans"
_MANIFEST = "manifest.json"


def files_of(key: str, job: str, attempt: int) -> str:
    """Where an attempt puts its files."""
    return f"{PLACE}/{key}/files/{job}-{attempt}"


def read_plan(artifacts: Artifacts, key: str) -> KeptPlan | None:
    with contextlib.suppress(NotFound):
        return KeptPlan.model_validate_json(artifacts.get_bytes(f"{PLACE}/{key}/{_MANIFEST}"))
    return None


def publish_plan(artifacts: Artifacts, made: KeptPlan) -> KeptPlan:
    """The plan of that key: this one, unless somebody was faster."""
    with contextlib.suppress(FileExistsError):
        text = made.model_dump_json(indent=1).encode()
        artifacts.put_bytes(text, f"{PLACE}/{made.key}/{_MANIFEST}", create=True)
        return made
    kept = read_plan(artifacts, made.key)
    return kept or made


def sweep_plans(artifacts: Artifacts, sources: Iterable[str], open_jobs: set[str], before: datetime) -> int:
    """Deletes plans of graphs that no version has any more, and files that no plan names; how many objects. sources:
    the sha256 of the files of all versions. before: what was written later is left."""
    known, gone = frozenset(sources), 0
    for key in artifacts.folders(PLACE):
        plan = read_plan(artifacts, key)
        is_wanted = plan is not None and plan.source in known
        entries = list(artifacts.entries(f"{PLACE}/{key}"))
        # What names the others goes first: nobody then finds half of it.
        for entry in sorted(entries, key=lambda entry: not entry.key.endswith(f"/{_MANIFEST}")):
            named = plan is not None and entry.key.startswith(plan.folder + "/")
            is_manifest = entry.key.endswith(f"/{_MANIFEST}")
            job = "" if is_manifest else entry.key.split("/")[3].rsplit("-", 1)[0]
            if (is_wanted and (named or is_manifest)) or job in open_jobs or entry.at >= before:
                continue
            artifacts.delete(entry.key)
            gone += 1
    return gone
