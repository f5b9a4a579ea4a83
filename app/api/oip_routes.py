"""/v2: the Open Inference Protocol over the deployments. Health, metadata, Triton's extensions; infer is in oip.py."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from app.api import health
from app.api.body import Json, parsed
from app.api.oip_examples import ANY_ERROR, CONFIG, INDEX, INFER, METADATA, STATISTICS, shown, told
from app.deps import fleet
from app.errors import BadRequest, NotFound, Unavailable
from app.serving import oip_metadata
from app.serving.oip import EXTENSIONS, not_served
from app.serving.served import Served, ServedLane
from app.version import VERSION

router = APIRouter(tags=["open inference protocol"], responses=ANY_ERROR)
Named = Annotated[str, Path(max_length=200, description="the deployment's name")]
Numbered = Annotated[str, Path(max_length=20, description="a version that the deployment serves")]
_ABSENT = told(_404="no such deployment, or it does not serve this version", _503="not loaded")
_INFER_ERRORS = told(
    _400="a wrong name, datatype, shape, length or value; the error says what was expected",
    _404="no such deployment, or it does not serve this version",
    _413="the body is too large, or unpacks to too much",
    _429="the queue is full; Retry-After says for how long",
    _415="a Content-Encoding other than gzip and deflate",
    _503="not loaded",
    _504="the deadline passed",
)


@router.get("/v2", openapi_extra=shown({"name": "enginesmith", "version": VERSION, "extensions": list(EXTENSIONS)}))
async def server(request: Request) -> Response:
    """The server and the extensions of the protocol that it has."""
    return Json({"name": "enginesmith", "version": request.app.version, "extensions": EXTENSIONS})


@router.get("/v2/health/live", openapi_extra=shown({"live": True}))
async def server_live() -> Response:
    """200 as long as the event loop turns."""
    return Json({"live": True})


@router.get("/v2/health/ready", openapi_extra=shown({"ready": True}), responses=told(_503="something is missing"))
async def server_ready(request: Request) -> Response:
    """200 only when every deployment wanted is served, as wanted, and Redis answers: as /healthz/ready, and as Triton's
    with strict readiness. A load balancer asks /healthz/serving."""
    try:
        await health.ready(request)
    except Unavailable as problem:
        return Json({"ready": False, "error": problem.detail}, 503, problem.headers)
    return Json({"ready": True})


# Before /v2/models/{name}.
@router.get("/v2/models/stats", openapi_extra=shown(STATISTICS))
async def all_statistics(request: Request) -> Response:
    """Triton's statistics of every version served; since this process started."""
    the_fleet = fleet(request)
    return Json({"model_stats": await _statistics(the_fleet, None, None)})


@router.get("/v2/models/{name}/versions/{version}", openapi_extra=shown(METADATA), responses=_ABSENT)
async def version_metadata(name: Named, version: Numbered, request: Request) -> Response:
    """A version's inputs and outputs."""
    return await _metadata(request, name, version)


@router.get("/v2/models/{name}", openapi_extra=shown(METADATA), responses=_ABSENT)
async def metadata(name: Named, request: Request) -> Response:
    """The inputs and outputs of what a deployment serves, and the numbers of its versions. -1 is any size."""
    return await _metadata(request, name, None)


@router.get(
    "/v2/models/{name}/versions/{version}/ready",
    openapi_extra=shown({"name": "digits", "ready": True}),
    responses=_ABSENT,
)
async def version_ready(name: Named, version: Numbered, request: Request) -> Response:
    """200 when a request for this version would be answered."""
    return _ready(fleet(request), name, version)


@router.get("/v2/models/{name}/ready", openapi_extra=shown({"name": "digits", "ready": True}), responses=_ABSENT)
async def ready(name: Named, request: Request) -> Response:
    """200 when a request would be answered, by whichever version serves now."""
    return _ready(fleet(request), name, None)


@router.get("/v2/models/{name}/versions/{version}/config", openapi_extra=shown(CONFIG), responses=_ABSENT)
async def version_config(name: Named, version: Numbered, request: Request) -> Response:
    """A version's configuration, as Triton writes it."""
    return Json(oip_metadata.config(name, await _find(request, name, version)))


@router.get("/v2/models/{name}/config", openapi_extra=shown(CONFIG), responses=_ABSENT)
async def config(name: Named, request: Request) -> Response:
    """What a deployment serves, as Triton's model configuration."""
    return Json(oip_metadata.config(name, await _find(request, name, None)))


@router.get("/v2/models/{name}/versions/{version}/stats", openapi_extra=shown(STATISTICS), responses=_ABSENT)
async def version_statistics(name: Named, version: Numbered, request: Request) -> Response:
    """Triton's statistics of one version."""
    the_fleet = fleet(request)
    _require(the_fleet, name, version)
    return Json({"model_stats": await _statistics(the_fleet, name, version)})


@router.get("/v2/models/{name}/stats", openapi_extra=shown(STATISTICS), responses=_ABSENT)
async def statistics(name: Named, request: Request) -> Response:
    """Triton's statistics of every version that a deployment serves."""
    the_fleet = fleet(request)
    _require(the_fleet, name, None)
    return Json({"model_stats": await _statistics(the_fleet, name, None)})


@router.post("/v2/models/{name}/infer", openapi_extra=INFER, responses=_INFER_ERRORS)
async def infer(name: Named) -> Response:
    """Answers one request. Rows of several requests share a run of the engine."""
    # The page in /docs is made from this; requests are answered by `oip.infer`, through app/api/hot.py.
    raise NotFound(f"no deployment {name!r}", code="deployment_not_found")


@router.post("/v2/models/{name}/versions/{version}/infer", openapi_extra=INFER, responses=_INFER_ERRORS)
async def infer_version(name: Named, version: Numbered) -> Response:
    """Answers one request with a version of those that the deployment serves."""
    return await infer(name)


@router.post("/v2/repository/index", openapi_extra=shown(INDEX))
async def index(request: Request) -> Response:
    """Every deployment with its versions and how they stand. `{"ready": true}`: only those that answer."""
    body = await request.body()
    asked = await parsed(body) if body else {}
    if not isinstance(asked, dict) or not isinstance(only_ready := asked.get("ready", False), bool):
        raise BadRequest('the body must be {"ready": true} or empty')
    return Json(oip_metadata.index(fleet(request), only_ready))


@router.post("/v2/repository/models/{name}/{change}", include_in_schema=False)
async def change_repository(name: str, change: str) -> Response:
    raise not_served(
        "loading and unloading by the repository's API are",
        f"PUT /v1/deployments/{name} deploys a version, and DELETE takes it down",
    )


@router.api_route("/v2/logging", methods=["GET", "POST"], include_in_schema=False)
async def logging() -> Response:
    raise not_served("log settings are", "the service is started with ENGINESMITH_LOG_LEVEL")


@router.api_route("/v2/trace/setting", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/v2/models/{name}/trace/setting", methods=["GET", "POST"], include_in_schema=False)
async def tracing() -> Response:
    raise not_served("trace settings are", "the service is started with ENGINESMITH_OTLP_ENDPOINT")


@router.api_route("/v2/systemsharedmemory/{rest:path}", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/v2/cudasharedmemory/{rest:path}", methods=["GET", "POST"], include_in_schema=False)
async def shared_memory(rest: str) -> Response:
    raise not_served("shared memory is", "send tensors in the body, as binary")


async def _find(request: Request, name: str, version: str | None) -> ServedLane:
    return await fleet(request).find(name, version)


async def _metadata(request: Request, name: str, version: str | None) -> Response:
    lane = await _find(request, name, version)
    return Json(oip_metadata.metadata(name, lane, fleet(request).served(name)))


def _ready(the_fleet: Served, name: str, version: str | None) -> Response:
    _require(the_fleet, name, version)
    if name in the_fleet.unserved():
        the_fleet.lane(name, version)  # says why not
    return Json({"name": name, "ready": True})


def _require(the_fleet: Served, name: str, version: str | None) -> None:
    """Raises NotFound, Unavailable, for what is not wanted here. What sleeps is not loaded for the question."""
    served = the_fleet.served(name)
    if not served or (version is not None and version not in served):
        the_fleet.lane(name, version)


async def _statistics(the_fleet: Served, name: str | None, version: str | None) -> list[dict[str, Any]]:
    return [s for s in await the_fleet.statistics() if name in (None, s["name"]) and version in (None, s["version"])]
