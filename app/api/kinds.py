"""The menu: which kinds of jobs there are, their schemas, and which targets this installation can build."""

from __future__ import annotations

import asyncio
import functools
import inspect
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app import runtimes
from app.api.body import Json
from app.api.examples import problems, schema_of
from app.api.queues import choose_queue
from app.deps import TheCatalog
from app.domain.specs import MENU, NOT_SUBMITTED, Spec

router = APIRouter(tags=["jobs"])
_BY_WHAT = {"convert": "cpu, or gpu by target", "plan": "that of one kind of GPU"}
_NOT_TARGETS = frozenset({"echo"})


@router.get("/v1/jobs/kinds", summary="The menu", responses=problems())
async def kinds(request: Request, catalog: TheCatalog) -> Response:
    workers = await asyncio.to_thread(catalog.live_workers)
    takers = await asyncio.to_thread(catalog.takers)
    here = await asyncio.to_thread(availability)
    return Json(
        {
            "kinds": [_kind_json(kind, spec, takers) for kind, spec in MENU.items()],
            "targets": {name: _target_json(name, here[name], workers) for name in here},
            "isolation": _isolation(workers),
            "workers": workers,
        }
    )


@functools.cache
def availability() -> dict[str, dict[str, Any]]:
    """What this process could load and serve; looked up once, because it imports the libraries."""
    found = {}
    for name in runtimes.names():
        if name not in _NOT_TARGETS:
            found[name] = asdict(runtimes.get(name).available())
    return found


def _kind_json(kind: str, spec: type[Spec], workers: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "kind": kind,
        "description": inspect.getdoc(spec),
        "submit": NOT_SUBMITTED.get(kind, "POST /v1/jobs"),
        "needs": spec.needs,
        "needs_dataset": spec.needs_dataset,
        "queue": _BY_WHAT.get(kind) or choose_queue(spec.model_construct(), workers),
        "schema": schema_of(spec),
    }


def _target_json(name: str, here: dict[str, Any], workers: list[dict[str, Any]]) -> dict[str, Any]:
    """ok: whether some worker can build it. While none is alive, whether this process could."""
    told = {w["id"]: w["targets"][name] for w in workers if name in w.get("targets", {})}
    able = [t for t in told.values() if t.get("ok")]
    best = able[0] if able else next(iter(told.values()), here)
    return {
        "ok": bool(best.get("ok")),
        "reason": best.get("reason") or "",
        "precisions": sorted({p for t in able or [best] for p in t.get("precisions") or ()}),
        "app": here,
        "workers": told,
    }


def _isolation(workers: list[dict[str, Any]]) -> str:
    """The weakest of the workers': what an upload can count on."""
    ranks = ("none", "network", "files", "landlock", "namespaces")
    found = [w.get("isolation", "none") for w in workers]
    return min(found, key=lambda i: ranks.index(i) if i in ranks else 0) if found else "unknown: no worker is alive"
