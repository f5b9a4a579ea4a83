"""What a job has found: as JSON, or as a page that stands alone, with plots."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from app.api.body import Json
from app.api.examples import problems
from app.api.job_schema import REPORT
from app.api.recipes import recipe
from app.api.told import job_json, lineage_json, version_json
from app.deps import TheCatalog, ThePress
from app.domain.records import Job, Version, parse_ref
from app.errors import NotFound
from app.serving.accept import weighted
from app.storage.catalog import Catalog

router = APIRouter(tags=["jobs"])
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept",
}
_FIELDS = (
    "id", "kind", "spec", "model", "dataset", "status", "metrics", "history", "error", "started_at", "finished_at",
)  # fmt: skip


@router.get(
    "/v1/jobs/{id}/report",
    summary="What a job has found",
    description="JSON, or by `Accept: text/html` one page with plots that needs nothing else: save it, send it.",
    responses={
        200: {
            "description": "JSON, or HTML by Accept",
            "content": {"application/json": {"schema": REPORT}, "text/html": {"schema": {"type": "string"}}},
        },
        **problems(404),
    },
)
async def report(id: str, request: Request, catalog: TheCatalog, press: ThePress) -> Response:
    job = await asyncio.to_thread(catalog.job, id)
    if prefers_html(request.headers.get("accept", "")):
        given = await asyncio.to_thread(_gathered, job, catalog)
        return HTMLResponse(await press.printed(given), headers=_SECURITY)
    told = job_json(job)
    result = told["result"] or {}
    return Json(
        {name: told[name] for name in _FIELDS}
        | {"result": told["result"], "verdict": result.get("verdict"), "report": result.get("report") or {}},
        headers={"Vary": "Accept"},
    )


def prefers_html(accept: str) -> bool:
    """Whether text/html is wanted more than JSON."""
    weights = {"text/html": 0.0, "application/json": 0.0}
    for kind, weight in weighted(accept):
        if kind in weights:
            weights[kind] = max(weights[kind], weight)
    return weights["text/html"] > weights["application/json"]


def _gathered(job: Job, catalog: Catalog) -> dict[str, Any]:
    """All that a page is made of, as the API tells it."""
    source = _version(job.model, catalog)
    made = _version(job.result.model if job.result else None, catalog)
    made = None if source is not None and made is not None and made.ref == source.ref else made
    named = made or source
    tree: list[dict[str, Any]] = []
    if named is not None:
        with contextlib.suppress(NotFound):
            tree = lineage_json(catalog.versions(named.name))
    return {
        "job": job_json(job),
        "source": version_json(source) if source else None,
        "made": version_json(made) if made else None,
        "lineage": tree,
        "recipe": recipe(made, catalog) if made else None,
    }


def _version(ref: str | None, catalog: Catalog) -> Version | None:
    """The version, unless it was deleted since."""
    name, number = parse_ref(ref) if ref else ("", None)
    with contextlib.suppress(NotFound):
        return catalog.version(name, number) if number else None
    return None
