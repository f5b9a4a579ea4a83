"""Whether this process lives, whether it can serve, and its metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from app.api.body import Json
from app.deps import fleet
from app.errors import Unavailable
from app.observe import METRICS_TYPE, exposition

router = APIRouter(tags=["health"])


@router.head("/healthz/live", include_in_schema=False)
@router.get("/healthz/live")
async def live() -> Response:
    """200 as long as the event loop turns."""
    return Json({"status": "live"})


@router.head("/healthz/ready", include_in_schema=False)
@router.get("/healthz/ready", responses={503: {"description": "something is missing; the body says what"}})
async def ready(request: Request) -> Response:
    """200 only when every deployment wanted is served by this replica, as wanted, and Redis answers."""
    the_fleet = fleet(request)
    errors = []
    if not await the_fleet.redis_answers():
        errors.append({"loc": ["redis"], "msg": "does not answer"})
    errors += [{"loc": ["deployments", n], "msg": why} for n, why in sorted(the_fleet.missing().items())]
    if errors:
        told = "; ".join(f"{e['loc'][-1]}: {e['msg']}" for e in errors)
        raise Unavailable(f"not ready: {told}", code="not_ready", errors=errors, headers={"Retry-After": "1"})
    return Json({"status": "ready", "redis": True, "deployments": the_fleet.names()})


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus' text form: requests of the service, and deployments under Triton's names."""
    return Response(exposition() + fleet(request).exposition().encode(), media_type=METRICS_TYPE)
