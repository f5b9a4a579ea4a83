"""/v1/deployments: which version answers under which name. PUT says what is wanted; every fleet makes it so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from app import runtimes
from app.api.body import Json, checked, read_json
from app.api.examples import headers, json_body
from app.api.paging import Cursor, Limit, page
from app.api.waiting import applied, preferred_wait
from app.deps import TheCatalog, TheSettings, fleet
from app.domain.records import NAME, Canary, Deployment, Version, now, parse_ref
from app.domain.specs import Ref
from app.errors import Conflict, NotFound, Unprocessable
from app.serving.lane import default_max_batch
from app.settings import Settings
from app.storage.catalog import Catalog, Stale

router = APIRouter(tags=["deployments"])
Named = Annotated[str, Path(pattern=NAME, description="the deployment's name")]
_DOUBTED = ("rejected", "unproven")
_TRIES = 8


class WantedCanary(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: Ref
    percent: float = Field(ge=0, le=100, allow_inf_nan=False, description="share of the requests that it answers")


class Wanted(BaseModel):
    """The body of PUT."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: Ref = Field(description="`name@3`, or `name` for its newest engine that was not rejected")
    instances: int = Field(1, ge=1, le=64, strict=True, description="runs of the engine that may go on at once")
    max_batch: int | None = Field(
        None, ge=1, le=65536, strict=True, description="default: what the engine was built for"
    )
    max_delay_ms: float = Field(0, ge=0, le=10_000, description="how long a batch waits for more; 0 adds no wait")
    max_queue: int | None = Field(None, ge=1, strict=True, description="rows that may wait before the answer is 429")
    canary: WantedCanary | None = None
    force: bool = Field(False, strict=True, description="deploy a version whose verdict is rejected or unproven")


_EXAMPLES = {
    "plain": {"model": "digits@5"},
    "tuned": {"model": "digits@5", "instances": 2, "max_batch": 32, "max_queue": 256},
    "canary": {"model": "digits@5", "canary": {"model": "digits@6", "percent": 5}},
}


@router.put(
    "/v1/deployments/{name}",
    openapi_extra=json_body(Wanted, _EXAMPLES) | headers("Prefer"),
    responses={201: {"description": "made"}},
)
async def put_deployment(name: Named, request: Request, catalog: TheCatalog, settings: TheSettings) -> Response:
    """Wants a version under a name: it is loaded and warmed aside, then swapped in, and no request is lost.

    `Prefer: wait=N` holds the answer until it is ready or has failed.
    """
    asked = checked(Wanted, await read_json(request), "the deployment")
    deployment, is_new = await asyncio.to_thread(_want, catalog, name, asked)
    return await _answer(deployment, request, catalog, settings, 201 if is_new else 200)


@router.get("/v1/deployments")
async def list_deployments(
    catalog: TheCatalog, settings: TheSettings, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """Every deployment, by name."""

    def read() -> tuple[list[dict[str, Any]], str | None]:
        rest = [d for d in catalog.deployments() if cursor is None or d.name > cursor]
        shown = rest[:limit]
        return [_view(d, catalog, settings) for d in shown], shown[-1].name if len(rest) > limit else None

    return page(*await asyncio.to_thread(read))


@router.get("/v1/deployments/{name}")
async def get_deployment(name: Named, catalog: TheCatalog, settings: TheSettings) -> Response:
    """What is wanted under a name, and how far the replicas are with it."""
    return Json(await asyncio.to_thread(lambda: _view(catalog.deployment(name), catalog, settings)))


@router.delete("/v1/deployments/{name}", status_code=204)
async def delete_deployment(name: Named, request: Request, catalog: TheCatalog) -> Response:
    """Takes a deployment down; requests that it has taken are answered first."""

    def drop() -> None:
        catalog.deployment(name)
        catalog.drop_deployment(name)

    await asyncio.to_thread(drop)
    await fleet(request).settled()
    return Response(status_code=204)


@router.post("/v1/deployments/{name}/rollback", openapi_extra=headers("Prefer"))
async def rollback(name: Named, request: Request, catalog: TheCatalog, settings: TheSettings) -> Response:
    """Back to the version before. A second rollback goes forth again."""
    deployment = await asyncio.to_thread(_roll_back, catalog, name)
    return await _answer(deployment, request, catalog, settings, 200)


async def _answer(
    deployment: Deployment, request: Request, catalog: Catalog, settings: Settings, status: int
) -> Response:
    seconds = preferred_wait(request.headers)
    fleet(request).nudge()
    until = time.monotonic() + seconds
    while True:
        view = await asyncio.to_thread(_view, deployment, catalog, settings)
        if view["status"] in ("ready", "failed") or time.monotonic() >= until or await request.is_disconnected():
            break
        await asyncio.sleep(0.1)
    told = {"Location": f"/v1/deployments/{deployment.name}"} | applied(seconds)
    return Json(view, status, told)


def _want(catalog: Catalog, name: str, asked: Wanted) -> tuple[Deployment, bool]:
    """Stores what is wanted: (the deployment, whether it is new). The same again changes nothing."""
    for _ in range(_TRIES):
        try:
            before: Deployment | None = catalog.deployment(name)
        except NotFound:
            before = None
        model = _deployable(catalog, asked.model, asked)
        fields = asked.model_dump() | {"model": model.ref}
        if asked.canary is not None:
            canary = _deployable(catalog, asked.canary.model, asked)
            fields["canary"] = Canary(model=canary.ref, percent=asked.canary.percent)
        at = now()
        if before is None:
            wanted = Deployment(name=name, created_at=at, updated_at=at, **fields)
        else:
            wanted = before.but(**fields)
            if wanted == before:
                return before, False
            previous = before.model if before.model != wanted.model else before.previous
            wanted = wanted.but(previous=previous, generation=before.generation + 1, updated_at=at)
        try:
            return catalog.put_deployment(wanted, was_generation=before.generation if before else None), before is None
        except Stale:
            continue
    raise Stale(f"deployment {name!r} is being changed by others all the time", hint="try again")


def _roll_back(catalog: Catalog, name: str) -> Deployment:
    for _ in range(_TRIES):
        before = catalog.deployment(name)
        if before.previous is None:
            raise Conflict(f"deployment {name!r} has never served another version", code="no_previous")
        try:
            catalog.version(*_exact(before.previous))
        except NotFound:
            raise Conflict(
                f"{before.previous}, which {name!r} served before, has been deleted", code="no_previous"
            ) from None
        wanted = before.but(
            model=before.previous,
            previous=before.model,
            canary=None,
            generation=before.generation + 1,
            updated_at=now(),
        )
        try:
            return catalog.put_deployment(wanted, was_generation=before.generation)
        except Stale:
            continue
    raise Stale(f"deployment {name!r} is being changed by others all the time", hint="try again")


def _deployable(catalog: Catalog, ref: str, asked: Wanted) -> Version:
    """The version that a reference means. Raises NotFound; Conflict for one that cannot be deployed."""
    name, number = parse_ref(ref)
    if number is not None:
        version = catalog.version(name, number)
        _refuse(catalog, version, asked)
        return version
    newest_first = list(reversed(catalog.versions(name)))
    engines = [v for v in newest_first if v.is_engine]
    if not engines:
        raise _no_engine(newest_first[0])
    first_refusal: Conflict | Unprocessable | None = None
    for version in engines:
        try:
            _refuse(catalog, version, asked)
        except (Conflict, Unprocessable) as error:
            first_refusal = first_refusal or error
        else:
            return version
    assert first_refusal is not None
    raise first_refusal


def _refuse(catalog: Catalog, version: Version, asked: Wanted) -> None:
    """Raises Conflict or Unprocessable when this version cannot be deployed as asked."""
    if not version.is_engine:
        raise _no_engine(version)
    found = runtimes.get(version.format).available()
    if not found.ok:
        raise Conflict(
            f"{version.ref} is an engine of {version.format}, which cannot run here: {found.reason}",
            code="runtime_unavailable",
            hint="convert for another target, or deploy where that runtime is available",
        )
    built_for = default_max_batch(version)
    if version.format.startswith("tensorrt") and asked.max_batch is not None and asked.max_batch > built_for:
        raise Unprocessable(
            f"{version.ref} was built for at most {built_for} rows, and max_batch is {asked.max_batch}",
            hint="deploy with a smaller max_batch, or convert with a larger one",
        )
    verdicts = [e["verdict"] for e in catalog.evaluations(version.ref) if e.get("verdict")] or [version.verdict]
    if not asked.force and (doubts := [v for v in verdicts if v in _DOUBTED]):
        raise Conflict(
            f"{version.ref} was judged {doubts[0]}: it did not meet the bounds set for it",
            code=f"version_{doubts[0]}",
            hint='look at its metrics; deploy it all the same with "force": true',
        )


def _no_engine(version: Version) -> Conflict:
    return Conflict(
        f"{version.ref} is no engine: its format is {version.format}",
        code="not_an_engine",
        hint=f'convert it first: POST /v1/jobs {{"kind": "convert", "model": "{version.ref}", "target": "openvino"}}',
    )


def _exact(ref: str) -> tuple[str, int]:
    name, number = parse_ref(ref)
    if number is None:
        raise NotFound(f"{ref!r} names no exact version")
    return name, number


def _view(deployment: Deployment, catalog: Catalog, settings: Settings) -> dict[str, Any]:
    """The answer: what is wanted, and what the live replicas report of it."""
    reports = [r for r in catalog.replicas(deployment.name) if r.get("status") != "gone"]
    status = _status(deployment, reports)
    error = next((r["error"] for r in reports if _is_current(deployment, r) and r.get("error")), None)
    max_batch = deployment.max_batch
    if max_batch is None:
        try:
            max_batch = default_max_batch(catalog.version(*_exact(deployment.model)))
        except NotFound:
            max_batch = None
    return deployment.model_dump(mode="json") | {
        "status": status,
        "max_batch": max_batch,
        "max_queue": deployment.max_queue or settings.max_queue,
        "replicas": reports,
        "error": error,
    }


def _status(deployment: Deployment, reports: Collection[dict[str, Any]]) -> str:
    """`ready` only when every live replica serves this very generation."""
    current = [str(r.get("status")) for r in reports if _is_current(deployment, r)]
    for status in ("failed", "building"):
        if status in current:
            return status
    done = len(current) == len(reports) > 0 and all(s == "ready" for s in current)
    return "ready" if done else "loading"


def _is_current(deployment: Deployment, report: dict[str, Any]) -> bool:
    """Generations start anew when a deployment was deleted and made again: the time of making tells them apart."""
    return (report.get("generation"), report.get("since")) == (deployment.generation, deployment.created_at)
