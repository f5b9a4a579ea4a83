"""Forgets jobs that ended long ago. What they made stays, and so does a job for as long as anything it made exists:
it holds that version's report."""

from __future__ import annotations

import time
from collections.abc import Collection

from app.domain.records import seconds_since
from app.errors import NotFound
from app.storage.catalog import Catalog

_PAGE = 500


def forget_jobs(catalog: Catalog, makers: Collection[str], older_than_s: float) -> int:
    """makers: ids of the jobs that made what exists. Says how many were forgotten, without their trials."""
    before_ms = int((time.time() - older_than_s) * 1000)
    gone, first = 0, 0
    while ids := catalog.jobs_before(before_ms, first, _PAGE):
        for id in ids:
            if _is_over(catalog, id, makers, older_than_s):
                catalog.forget_job(id)
                gone += 1
            else:
                first += 1
    return gone


def _is_over(catalog: Catalog, id: str, makers: Collection[str], older_than_s: float) -> bool:
    try:
        job = catalog.brief(id)
    except NotFound:
        return True
    ended = job.finished_at is not None and seconds_since(job.finished_at) > older_than_s
    if not job.ended or not ended or id in makers:
        return False
    return not any(trial in makers for trial in catalog.trials.ids(id))
