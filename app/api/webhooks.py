"""/v1/webhooks: who is told what happens to jobs. Sending is elsewhere: see app/webhooks."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from app.api.body import Json, checked, read_json
from app.api.examples import json_body, problems
from app.api.paging import Cursor, Limit, page
from app.api.webhook_schema import EXAMPLES, Wanted, shown
from app.deps import TheArtifacts, TheCatalog, TheSettings
from app.domain.webhooks import Delivery, Webhook, make
from app.storage.catalog import Catalog
from app.storage.kept_webhooks import add_webhook, drop_webhook
from app.webhooks.addresses import lookup, parse_allowed, parse_url, reachable

router = APIRouter(tags=["webhooks"])
Id = Annotated[str, Path(pattern="^[0-9a-f]{16}$", description="the webhook's id")]


@router.post(
    "/v1/webhooks",
    status_code=201,
    summary="Have a URL called when something happens to jobs",
    responses={201: shown("made; the secret is said here alone", "made"), **problems(400, 409, 413, 415, 422, 507)},
    openapi_extra=json_body(Wanted, EXAMPLES),
)
async def add(request: Request, settings: TheSettings, artifacts: TheArtifacts, catalog: TheCatalog) -> Response:
    """It gets a POST with `{"id", "event", "created_at", "job"}`, and the headers `Enginesmith-Event`,
    `Enginesmith-Delivery` and `Enginesmith-Signature: t=UNIX,v1=HEX`: HMAC-SHA256 with the secret over `t`, a dot and
    the body as it came. `verify_webhook` of the Python client checks it. Trials of a search are not told of.

    Any 2xx within 10 seconds is a success. All else is tried again for a day, less and less often; redirects are not
    followed, `Retry-After` is heeded, and 410 turns the webhook off. A delivery may come twice, and in another order:
    its id tells. Addresses that are not public are refused, here and whenever it is called, unless
    `ENGINESMITH_WEBHOOKS_ALLOW` has them. Needs the scope `admin`, as all about webhooks does.
    """
    wanted = checked(Wanted, await read_json(request), "the webhook")
    await reachable(parse_url(wanted.url), parse_allowed(settings.webhooks_allow), lookup)
    hook = make(wanted.url, wanted.events, wanted.secret)
    await asyncio.to_thread(add_webhook, artifacts, catalog, hook)
    view = await asyncio.to_thread(_view, hook, catalog)
    told = {"Location": view["links"]["self"], "Cache-Control": "no-store"}
    return Json(view | {"secret": hook.secret}, 201, told)


@router.get(
    "/v1/webhooks",
    summary="Webhooks, by their id",
    responses={200: shown("a page of them, without secrets", "list"), **problems(422)},
)
def list_webhooks(catalog: TheCatalog, limit: Limit = 50, cursor: Cursor = None) -> Response:
    rest = [hook for hook in catalog.webhooks.all() if cursor is None or hook.id > cursor]
    following = rest[limit - 1].id if len(rest) > limit else None
    return page([_view(hook, catalog) for hook in rest[:limit]], following)


@router.get(
    "/v1/webhooks/{id}",
    summary="One webhook, with its last deliveries",
    responses={200: shown("the webhook, without its secret", "webhook", "failing"), **problems(404, 422)},
)
def get(id: Id, catalog: TheCatalog) -> Response:
    hook = catalog.webhooks.get(id)
    deliveries = [_sent(delivery, due) for delivery, due in catalog.webhooks.deliveries(id)]
    return Json(_view(hook, catalog) | {"deliveries": deliveries})


@router.delete(
    "/v1/webhooks/{id}",
    status_code=204,
    summary="Call it no more",
    description="What waits for it is forgotten. A request that is being sent may still arrive.",
    responses=problems(404, 422),
)
def delete(id: Id, artifacts: TheArtifacts, catalog: TheCatalog) -> Response:
    drop_webhook(artifacts, catalog, id)
    return Response(status_code=204)


@router.post(
    "/v1/webhooks/{id}/ping",
    status_code=202,
    summary="Send it a test event",
    description="An event `ping`, whose `job` is null, sent like any other. `GET /v1/webhooks/{id}` has its outcome. "
    "409 for a webhook that is off.",
    responses={202: shown("the delivery, on its way", "delivery"), **problems(404, 409, 422)},
)
def ping(id: Id, catalog: TheCatalog) -> Response:
    delivery = catalog.webhooks.ping(id)
    due = datetime.fromisoformat(delivery.created_at).timestamp()
    return Json(_sent(delivery, due), 202, {"Location": f"/v1/webhooks/{id}"})


def _view(hook: Webhook, catalog: Catalog) -> dict[str, Any]:
    at = f"/v1/webhooks/{hook.id}"
    told = hook.model_dump(mode="json", exclude={"secret"}) | catalog.webhooks.standing(hook.id)._asdict()
    return told | {"links": {"self": at, "ping": f"{at}/ping"}}


def _sent(delivery: Delivery, due: float | None) -> dict[str, Any]:
    at = None if due is None else datetime.fromtimestamp(due, UTC).isoformat(timespec="milliseconds")
    return delivery.model_dump(mode="json") | {"next_attempt_at": at and at.replace("+00:00", "Z")}
