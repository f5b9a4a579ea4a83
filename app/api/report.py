"""What a job has found: as JSON, or as a page that stands alone, with plots."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from app.api.body import Json
from app.api.examples import problems
from app.api.job_schema import REPORT
from app.api.recipes import RECIPE, recipe
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
_PAIR = {"type": "object", "required": ["before", "after"], "properties": {"before": {}, "after": {}}}
_LINEAGE: dict[str, Any] = {
    "type": "array",
    "description": "from the upload to the version that the job made, or else looked at; it begins later where "
    "versions on the way were deleted",
    "items": {
        "type": "object",
        "required": ["ref", "made_by", "parent", "format", "changes", "quality", "verdict", "created_at"],
        "properties": {
            "ref": {"type": "string"},
            "made_by": {
                "type": "object",
                "required": ["kind", "job"],
                "properties": {"kind": {"type": ["string", "null"]}, "job": {"type": "string"}},
            },
            "parent": {"type": ["string", "null"]},
            "format": {"type": "string"},
            "changes": {
                "type": "object",
                "description": "what is other than in the version that it was made from: format, precision, bytes, "
                "parameters, macs, sparsity, accuracy or r2",
                "additionalProperties": _PAIR,
            },
            "quality": {"type": ["object", "null"]},
            "verdict": {"type": ["string", "null"]},
            "created_at": {"type": "string", "format": "date-time"},
        },
    },
}
_SCHEMA: dict[str, Any] = REPORT | {
    "required": [*REPORT["required"], "lineage", "recipe"],
    "properties": REPORT["properties"]
    | {
        "lineage": _LINEAGE,
        "recipe": {"anyOf": [RECIPE, {"type": "null"}], "description": "of the version that the job made"},
    },
}
_LONGEST = 1000  # versions in a lineage
_SAME_ROWS = ("name", "split", "dataset", "n")
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
            "content": {"application/json": {"schema": _SCHEMA}, "text/html": {"schema": {"type": "string"}}},
        },
        **problems(404),
    },
)
async def report(id: str, request: Request, catalog: TheCatalog, press: ThePress) -> Response:
    job = await asyncio.to_thread(catalog.job, id)
    if prefers_html(request.headers.get("accept", "")):
        given = await asyncio.to_thread(_gathered, job, catalog)
        return HTMLResponse(await press.printed(given), headers=_SECURITY)
    return Json(await asyncio.to_thread(_as_json, job, catalog), headers={"Vary": "Accept"})


def _as_json(job: Job, catalog: Catalog) -> dict[str, Any]:
    told = job_json(job)
    result = told["result"] or {}
    source, made = _versions(job, catalog)
    at = made or source
    return {name: told[name] for name in _FIELDS} | {
        "result": told["result"],
        "verdict": result.get("verdict"),
        "report": result.get("report") or {},
        "lineage": lineage(at, catalog) if at else [],
        "recipe": recipe(made, catalog) if made else None,
    }


def prefers_html(accept: str) -> bool:
    """Whether text/html is wanted more than JSON."""
    weights = {"text/html": 0.0, "application/json": 0.0}
    for kind, weight in weighted(accept):
        if kind in weights:
            weights[kind] = max(weights[kind], weight)
    return weights["text/html"] > weights["application/json"]


def lineage(version: Version, catalog: Catalog) -> list[dict[str, Any]]:
    """From the upload to the version, each with what it changed."""
    chain = list(_ancestors(version, catalog))[::-1]
    return [_step(at, before) for before, at in zip([None, *chain], chain, strict=False)]


def _ancestors(version: Version, catalog: Catalog) -> Iterator[Version]:
    """The version itself first; as far back as they are still there."""
    at: Version | None = version
    for _ in range(_LONGEST):
        if at is None:
            return
        yield at
        at = _version(at.parent, catalog)


def _step(at: Version, before: Version | None) -> dict[str, Any]:
    quality = at.metrics.quality
    return {
        "ref": at.ref,
        "made_by": {"kind": at.made_by.spec.get("kind"), "job": at.made_by.job},
        "parent": at.parent,
        "format": at.format,
        "changes": _changes(before, at) if before is not None else {},
        "quality": quality.model_dump(mode="json") if quality else None,
        "verdict": at.verdict,
        "created_at": at.created_at,
    }


def _changes(before: Version, at: Version) -> dict[str, dict[str, Any]]:
    """Figures that both have and that differ; of quality those on the same rows alone."""
    fields = ("format", "bytes", "parameters", "macs", "sparsity")
    pairs = {name: (getattr(before, name), getattr(at, name)) for name in fields}
    known = {name: pair for name, pair in pairs.items() if None not in pair}
    known["precision"] = (before.details.get("precision"), at.details.get("precision"))
    was, now = before.metrics.quality, at.metrics.quality
    if was is not None and now is not None and all(getattr(was, f) == getattr(now, f) for f in _SAME_ROWS):
        known[now.name] = (was.value, now.value)
    return {name: {"before": a, "after": b} for name, (a, b) in known.items() if a != b}


def _versions(job: Job, catalog: Catalog) -> tuple[Version | None, Version | None]:
    """What the job was about, and what it made; None for what is not there, or is both."""
    source = _version(job.model, catalog)
    made = _version(job.result.model if job.result else None, catalog)
    return source, None if source is not None and made is not None and made.ref == source.ref else made


def _gathered(job: Job, catalog: Catalog) -> dict[str, Any]:
    """All that a page is made of, as the API tells it."""
    source, made = _versions(job, catalog)
    named = made or source
    tree: list[dict[str, Any]] = []
    if named is not None:
        with contextlib.suppress(NotFound):
            tree = lineage_json(catalog.versions(named.name))
    return {
        "job": job_json(job),
        "source": version_json(source) if source else None,
        "made": version_json(made) if made else None,
        "chain": lineage(named, catalog) if named else [],
        "lineage": tree,
        "recipe": recipe(made, catalog) if made else None,
    }


def _version(ref: str | None, catalog: Catalog) -> Version | None:
    """The version, unless it was deleted since."""
    name, number = parse_ref(ref) if ref else ("", None)
    with contextlib.suppress(NotFound):
        return catalog.version(name, number) if number else None
    return None
