"""What is stored, and how much more may be."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.auth import caller
from app.api.body import Json
from app.api.examples import problems
from app.deps import TheCatalog, TheRoom, TheSettings
from app.room import Room
from app.storage.catalog import Catalog

router = APIRouter(tags=["usage"])
_EXAMPLE: dict[str, Any] = {
    "measured_at": "2026-01-31T12:00:00.000Z",
    "store": {
        "bytes": 120_000_000, "objects": 310, "limit_bytes": None,
        "by": {"models": {"bytes": 100_000_000, "objects": 280}, "datasets": {"bytes": 20_000_000, "objects": 30}},
    },
    "disk": {"total_bytes": 500_000_000_000, "free_bytes": 300_000_000_000, "reserve_bytes": 1_073_741_824},
    "redis": {"bytes": 3_000_000},
    "models": {"versions": 14}, "datasets": {"versions": 2}, "jobs": {"kept": 41, "open": 1},
    "key": {"id": "0f3a5c7e9b1d", "bytes": 2_000_000, "limits": {"bytes": 10_000_000_000}},
    "keys": {"0f3a5c7e9b1d": 2_000_000},
}  # fmt: skip


@router.get(
    "/v1/usage",
    summary="What is stored, and how much more may be",
    description="At most half a minute old. `key`: the caller's own, null without one. `keys`: bytes of the versions "
    "and data sets made with each key, for callers with the scope admin, or where no key is asked for.",
    responses={
        200: {"description": "bytes and counts", "content": {"application/json": {"example": _EXAMPLE}}},
        **problems(507),
    },
)
def get_usage(request: Request, settings: TheSettings, catalog: TheCatalog, room: TheRoom) -> Response:
    return Json(told(request, settings.store_bytes, catalog, room))


def told(request: Request, store_bytes: int, catalog: Catalog, room: Room) -> dict[str, Any]:
    usage, disk, key = room.usage(), room.disk(), caller(request.scope)
    kept, open_ = catalog.counts()
    found: dict[str, Any] = {
        "measured_at": usage.measured_at,
        "store": usage.total.model_dump()
        | {"limit_bytes": store_bytes or None, "by": {name: of.model_dump() for name, of in usage.by.items()}},
        "disk": {"total_bytes": disk.total, "free_bytes": disk.free, "reserve_bytes": disk.reserve},
        "redis": {"bytes": catalog.memory()[0]},
        "models": {"versions": usage.versions},
        "datasets": {"versions": usage.datasets},
        "jobs": {"kept": kept, "open": open_},
        "key": None,
    }
    if key is not None:
        limits = key.limits.model_dump(exclude_none=True)
        found["key"] = {"id": key.owner, "bytes": usage.keys.get(key.owner, 0), "limits": limits}
    if key is None or key.may("admin"):
        found["keys"] = usage.keys
    return found
