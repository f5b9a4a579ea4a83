"""Whether this process lives, whether it can serve, and its metrics."""

from __future__ import annotations

import contextlib

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from app.api.body import Json
from app.api.keyring import Keyring
from app.deps import fleet
from app.errors import Problem, Unavailable
from app.observe import METRICS_TYPE

router = APIRouter(tags=["health"])


@router.head("/healthz/live", include_in_schema=False)
@router.get("/healthz/live")
async def live() -> Response:
    """200 as long as the event loop turns."""
    return Json({"status": "live"})


@router.head("/healthz/ready", include_in_schema=False)
@router.get(
    "/healthz/ready",
    responses={503: {"description": "something is missing; the body says what, with a key where one is asked for"}},
)
async def ready(request: Request) -> Response:
    """200 only when every deployment wanted is served by this replica, as wanted, and Redis answers.

    So 503 during a swap too, though the version before answers all the while, and while a new deployment is loaded for
    the first time: 200 must mean that a request gets the version wanted, and what was wanted a moment ago is looked up
    in Redis now. A deployment that sleeps counts as served, because a request has it loaded. To route traffic ask
    `/healthz/serving`: this one says no on all replicas at once when a version is being loaded. Which deployments there
    are is told to callers with a key, where keys are asked for.
    """
    the_fleet = fleet(request)
    errors = []
    if await the_fleet.redis_answers():
        await the_fleet.settled()
    else:
        errors.append({"loc": ["redis"], "msg": "does not answer"})
    errors += [{"loc": ["deployments", n], "msg": why} for n, why in sorted(the_fleet.missing().items())]
    if errors and not _may_know(request):
        raise Unavailable("not ready", code="not_ready", headers={"Retry-After": "1"})
    if errors:
        told = "; ".join(f"{e['loc'][-1]}: {e['msg']}" for e in errors)
        raise Unavailable(f"not ready: {told}", code="not_ready", errors=errors, headers={"Retry-After": "1"})
    return Json({"status": "ready", "redis": True} | _names(request))


@router.head("/healthz/serving", include_in_schema=False)
@router.get("/healthz/serving", responses={503: {"description": "a deployment that has answered does not any more"}})
async def serving(request: Request) -> Response:
    """200 when every deployment that has ever answered gets an answer of some version here: for load balancers.

    A swap that goes on, one that has failed and a Redis that is gone change nothing: predictions go on. Nor does a
    deployment that is made anew and has never been ready, or else one PUT would take all replicas out of service at
    once; requests to it are answered 503 until it is. A replica that starts is not serving until every deployment that
    it finds has been loaded, but for those that load nowhere and never have.
    """
    the_fleet = fleet(request)
    missing = the_fleet.owed()
    if missing or not the_fleet.known:
        which = ", ".join(missing) if _may_know(request) else "some of them"
        told = f"nothing answers for {which}" if missing else "the deployments are not known yet"
        raise Unavailable(told, code="not_serving", headers={"Retry-After": "1"})
    return Json({"status": "serving"} | _names(request))


def _may_know(request: Request) -> bool:
    """Whoever asks for health needs no key; what is served is told to those alone who have one, where one is asked
    for."""
    ring: Keyring = request.app.state.keyring
    with contextlib.suppress(Problem):
        return not ring.asks or bool(ring.known("any", request.headers.get("authorization", "").encode("latin-1")))
    return False


def _names(request: Request) -> dict[str, list[str]]:
    return {"deployments": fleet(request).names()} if _may_know(request) else {}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus' text form: requests of the service, and deployments under Triton's names."""
    return Response(await fleet(request).scrape(), media_type=METRICS_TYPE)
