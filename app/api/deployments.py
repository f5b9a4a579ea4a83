"""/v1/deployments: which version answers under which name. PUT says what is wanted; every fleet makes it so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from app.api.body import Json, checked, read_json
from app.api.deployable import deployable, exact
from app.api.deployment_schema import shown, shown_list
from app.api.examples import headers, json_body, problems
from app.api.likeness import refuse_unlike
from app.api.paging import Cursor, Limit, page
from app.api.waiting import applied, preferred_wait
from app.api.wanted import EXAMPLES, Wanted
from app.deps import TheArtifacts, TheCatalog, TheSettings, fleet
from app.domain.deployments import Canary, Deployment, Shadow
from app.domain.records import NAME, now
from app.errors import Conflict, NotFound
from app.serving.guard import MIN_REQUESTS
from app.serving.lane import default_max_batch
from app.settings import Settings
from app.storage.catalog import Catalog, Stale
from app.storage.kept_deployments import forget_deployment, keep_deployment

router = APIRouter(tags=["deployments"])
Named = Annotated[str, Path(pattern=NAME, description="the deployment's name")]
_TRIES = 8
_DONE = frozenset({"ready", "failed", "asleep"})


@router.put(
    "/v1/deployments/{name}",
    openapi_extra=json_body(Wanted, EXAMPLES) | headers("Prefer"),
    responses={200: shown("as it stands"), 201: shown("made"), **problems(400, 404, 409, 413, 415, 422)},
)
async def put_deployment(
    name: Named, request: Request, catalog: TheCatalog, settings: TheSettings, artifacts: TheArtifacts
) -> Response:
    """Wants a version under a name: it is loaded and warmed aside, then swapped in, and no request is lost.

    `Prefer: wait=N` holds the answer until it is ready or has failed; meanwhile somebody else's change is followed, and
    a deletion is a 409. A version that fails to load leaves the one before serving, also after a restart. A canary
    becomes the main version by a PUT that names it as `model`; nothing is loaded anew. Canary and shadow must take
    every request that the main version takes, and give the same outputs.

    `previous` is the version that was ready last, other than `model`: what has only ever failed is none. That is what a
    rollback goes to, so one rollback takes back a version that failed.

    `status`: `loading`; `ready`: all replicas serve this; `failed`: `error` says why; `asleep`: as wanted, but unloaded
    to make room for others (`ENGINESMITH_ENGINE_MEMORY_BYTES`), and the next request, which waits, has it loaded.
    `returned` says which canary broke which bound, when, and by what figures; the next change of what is wanted clears
    it. `replicas` shows how canary and shadow do on each.
    """
    asked = checked(Wanted, await read_json(request), "the deployment")
    deployment, is_new = await asyncio.to_thread(_want, catalog, name, asked)
    await asyncio.to_thread(keep_deployment, artifacts, deployment)
    return await _answer(deployment, request, catalog, settings, 201 if is_new else 200)


@router.get("/v1/deployments", responses={200: shown_list("by name"), **problems(422)})
async def list_deployments(
    catalog: TheCatalog, settings: TheSettings, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """Every deployment, by name."""

    def read() -> tuple[list[dict[str, Any]], str | None]:
        rest = [d for d in catalog.deployments() if cursor is None or d.name > cursor]
        shown = rest[:limit]
        return [_view(d, catalog, settings) for d in shown], shown[-1].name if len(rest) > limit else None

    return page(*await asyncio.to_thread(read))


@router.get("/v1/deployments/{name}", responses={200: shown("as it stands"), **problems(404, 422)})
async def get_deployment(name: Named, catalog: TheCatalog, settings: TheSettings) -> Response:
    """What is wanted under a name, and how far the replicas are with it."""
    return Json(await asyncio.to_thread(lambda: _view(catalog.deployment(name), catalog, settings)))


@router.delete("/v1/deployments/{name}", status_code=204, responses=problems(404, 422))
async def delete_deployment(name: Named, request: Request, catalog: TheCatalog, artifacts: TheArtifacts) -> Response:
    """Takes a deployment down; requests that it has taken are answered first."""

    def drop() -> None:
        catalog.deployment(name)
        forget_deployment(artifacts, name)
        catalog.drop_deployment(name)

    await asyncio.to_thread(drop)
    await fleet(request).settled()
    return Response(status_code=204)


@router.post(
    "/v1/deployments/{name}/rollback",
    openapi_extra=headers("Prefer"),
    responses={200: shown("as it stands"), **problems(404, 409, 422)},
)
async def rollback(
    name: Named, request: Request, catalog: TheCatalog, settings: TheSettings, artifacts: TheArtifacts
) -> Response:
    """Back to the version before, without canary and shadow. A second rollback goes forth again."""
    deployment = await asyncio.to_thread(_roll_back, catalog, name)
    await asyncio.to_thread(keep_deployment, artifacts, deployment)
    return await _answer(deployment, request, catalog, settings, 200)


async def _answer(
    deployment: Deployment, request: Request, catalog: Catalog, settings: Settings, status: int
) -> Response:
    seconds = preferred_wait(request.headers)
    # Seen here before it is answered: whoever asks for readiness next is not told of what was before.
    await fleet(request).settled()
    until = time.monotonic() + seconds
    while True:
        view = await asyncio.to_thread(_view, deployment, catalog, settings)
        if view["status"] in _DONE or time.monotonic() >= until or await request.is_disconnected():
            break
        await asyncio.sleep(0.1)
        deployment = await asyncio.to_thread(_as_it_stands, deployment, catalog)
    told = {"Location": f"/v1/deployments/{deployment.name}"} | applied(seconds)
    return Json(view, status, told)


def _as_it_stands(deployment: Deployment, catalog: Catalog) -> Deployment:
    """What is wanted now, by whoever was last. Raises Conflict when it has been deleted."""
    try:
        found = catalog.deployment(deployment.name)
    except NotFound:
        found = None
    if found is None or found.created_at != deployment.created_at:
        raise Conflict(
            f"deployment {deployment.name!r} was deleted while it was being loaded",
            code="deployment_deleted",
            hint="it was stored, and somebody has deleted it since; PUT it again if it is still wanted",
        )
    return found


def _want(catalog: Catalog, name: str, asked: Wanted) -> tuple[Deployment, bool]:
    """Stores what is wanted: (the deployment, whether it is new). The same again changes nothing."""
    for _ in range(_TRIES):
        try:
            before: Deployment | None = catalog.deployment(name)
        except NotFound:
            before = None
        model = deployable(catalog, asked.model, asked)
        fields = asked.model_dump() | {"model": model.ref}
        if asked.canary is not None:
            canary = deployable(catalog, asked.canary.model, asked)
            refuse_unlike(model, canary, "canary", asked.max_batch)
            fields["canary"] = Canary(**asked.canary.model_dump() | {"model": canary.ref})
        if asked.shadow is not None:
            shadow = deployable(catalog, asked.shadow.model, asked)
            refuse_unlike(model, shadow, "shadow", asked.max_batch)
            fields["shadow"] = Shadow(model=shadow.ref, percent=asked.shadow.percent)
        at = now()
        if before is None:
            wanted = Deployment(name=name, created_at=at, updated_at=at, **fields)
        else:
            wanted = before.but(**fields)
            if wanted == before:
                return before, False
            previous = before.previous_of(wanted.model, catalog.last_ready(name))
            changes = {"previous": previous, "returned": None, "generation": before.generation + 1, "updated_at": at}
            wanted = wanted.but(**changes)
        try:
            return _put(catalog, wanted, before), before is None
        except Stale:
            continue
    raise Stale(f"deployment {name!r} is being changed by others all the time", hint="try again")


def _roll_back(catalog: Catalog, name: str) -> Deployment:
    for _ in range(_TRIES):
        before = catalog.deployment(name)
        last = catalog.last_ready(name)
        previous = before.previous_of(before.model, last)
        if previous is None:
            raise Conflict(f"deployment {name!r} has never served another version", code="no_previous")
        try:
            catalog.version(*exact(previous))
        except NotFound:
            raise Conflict(f"{previous}, which {name!r} served before, has been deleted", code="no_previous") from None
        wanted = before.main_only(previous).but(
            previous=before.previous_of(previous, last),
            returned=None,
            generation=before.generation + 1,
            updated_at=now(),
        )
        try:
            return _put(catalog, wanted, before)
        except Stale:
            continue
    raise Stale(f"deployment {name!r} is being changed by others all the time", hint="try again")


def _put(catalog: Catalog, wanted: Deployment, before: Deployment | None) -> Deployment:
    if before is None:
        return catalog.put_deployment(wanted, was_generation=None)
    return catalog.put_deployment(wanted, was_generation=before.generation, was_made=before.created_at)


def _view(deployment: Deployment, catalog: Catalog, settings: Settings) -> dict[str, Any]:
    """The answer: what is wanted, and what the live replicas report of it."""
    reports = [r for r in catalog.replicas(deployment.name) if r.get("status") != "gone"]
    previous = deployment.previous_of(deployment.model, catalog.last_ready(deployment.name))
    status = _status(deployment, reports)
    error = next((r["error"] for r in reports if _is_current(deployment, r) and r.get("error")), None)
    max_batch = deployment.max_batch
    if max_batch is None:
        try:
            max_batch = default_max_batch(catalog.version(*exact(deployment.model)))
        except NotFound:
            max_batch = None
    return deployment.model_dump(mode="json") | {
        "previous": previous,
        "canary": _canary(deployment.canary),
        "status": status,
        "max_batch": max_batch,
        "max_queue": deployment.max_queue or settings.max_queue,
        "replicas": reports,
        "error": error,
        "building": next((r["building"] for r in reports if _is_current(deployment, r) and r.get("building")), None),
    }


def _canary(canary: Canary | None) -> dict[str, Any] | None:
    """With the bounds that are stated, and how many requests it takes to judge by them."""
    if canary is None:
        return None
    told = canary.model_dump(mode="json", exclude_none=True)
    is_bound = canary.max_error_rate is not None or canary.max_p99_ms is not None
    return {"min_requests": MIN_REQUESTS} | told if is_bound else told


def _status(deployment: Deployment, reports: Collection[dict[str, Any]]) -> str:
    """`ready` only when every live replica serves this very generation; one that sleeps does so when it is asked."""
    current = [str(r.get("status")) for r in reports if _is_current(deployment, r)]
    for status in ("failed", "building"):
        if status in current:
            return status
    if not current or len(current) < len(reports) or not set(current) <= {"ready", "asleep"}:
        return "loading"
    return "ready" if "ready" in current else "asleep"


def _is_current(deployment: Deployment, report: dict[str, Any]) -> bool:
    """Generations start anew when a deployment was deleted and made again: the time of making tells them apart."""
    return (report.get("generation"), report.get("since")) == (deployment.generation, deployment.created_at)
