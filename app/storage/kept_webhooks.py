"""Webhooks beside the models in the artifact store, so that a Redis that lost everything goes on telling whom it told.

What lies here is the truth; Redis follows it."""

from __future__ import annotations

import logging
from contextlib import suppress

from app.domain.webhooks import Webhook
from app.errors import Conflict, NotFound, Problem
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog

log = logging.getLogger("enginesmith.webhooks")
_FOLDER = "webhooks"


def add_webhook(artifacts: Artifacts, catalog: Catalog, hook: Webhook) -> None:
    """Raises Unavailable, InsufficientStorage; Conflict when there are enough. After any of them there is none."""
    artifacts.put_bytes(hook.model_dump_json(indent=1).encode(), _place(hook.id), create=True)
    try:
        catalog.webhooks.add(hook)
    except Problem:
        with suppress(Problem):
            artifacts.delete(_place(hook.id))
        raise


def drop_webhook(artifacts: Artifacts, catalog: Catalog, id: str) -> None:
    """Raises NotFound, Unavailable."""
    catalog.webhooks.get(id)
    artifacts.delete(_place(id))  # first: what lies here would come back
    catalog.webhooks.drop(id)


def turn_webhook_off(artifacts: Artifacts, catalog: Catalog, hook: Webhook, why: str) -> None:
    """For good. Raises Unavailable; where the store alone fails, it may be on again once Redis has lost everything."""
    off = hook.but(active=False, why_off=why)
    if not catalog.webhooks.turn_off(off):
        return
    artifacts.put_bytes(off.model_dump_json(indent=1).encode(), _place(hook.id))
    try:
        catalog.webhooks.get(hook.id)
    except NotFound:  # it was deleted meanwhile
        if catalog.remembers():
            artifacts.delete(_place(hook.id))


def restore_webhooks(artifacts: Artifacts, catalog: Catalog) -> int:
    """Puts those into Redis that it does not know; how many."""
    found = 0
    for key in artifacts.keys(_FOLDER):
        try:
            found += catalog.webhooks.add(Webhook.model_validate_json(artifacts.get_bytes(key)))
        except NotFound:
            continue
        except (ValueError, Conflict):
            log.error("the webhook in %s is damaged, or one too many, and is not restored", key)
    return found


def _place(id: str) -> str:
    return f"{_FOLDER}/{id}.json"
