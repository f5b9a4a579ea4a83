"""The loop that sends what is due to webhooks: a few at a time, off every path that somebody waits on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Sequence

from app.domain.records import now, seconds_since
from app.domain.webhooks import GIVE_UP_S, WAITS_S, Delivery, Webhook, pause_s, signature, wait_s
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.kept_webhooks import turn_webhook_off
from app.storage.webhooks import LEASE_S, Claimed
from app.webhooks.addresses import Allowed, Resolve, lookup
from app.webhooks.posting import Answered, Tls, post, trusted

log = logging.getLogger("enginesmith.webhooks")
LOOK_S = 1.0
MOST = 16
MOST_DOUBTFUL = 8  # to webhooks whose last attempt failed: however many are dead, there is room for the others
_AWAY_S = 5.0
_GONE = 410


class Sender:
    """Any number of processes may have one: a delivery is claimed under a lease, and sent by one at a time. It is sent
    at least once: a process may die between the receiver's answer and the note of it."""

    def __init__(
        self,
        artifacts: Artifacts,
        catalog: Catalog,
        allowed: Allowed,
        *,
        resolve: Resolve = lookup,
        tls: Tls = trusted,
        waits: Sequence[float] = WAITS_S,
        lease_s: float = LEASE_S,
    ) -> None:
        self._artifacts, self._catalog, self._allowed = artifacts, catalog, allowed
        self._resolve, self._tls = resolve, tls
        self._waits, self._lease_s = tuple(waits), lease_s
        self._flights: dict[asyncio.Task[None], bool] = {}  # whether each is a doubtful one
        self._landed = asyncio.Event()

    async def run(self) -> None:
        """Until it is cancelled. What is being sent then is sent again by whoever is next."""
        failing = False
        try:
            while True:
                self._landed.clear()
                try:
                    await self._start()
                    failing, wait = False, LOOK_S
                except Exception as error:
                    if not failing:
                        log.warning("webhooks could not be looked at, and are looked at again: %s", error)
                    failing, wait = True, _AWAY_S
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await (asyncio.sleep(wait) if failing else self._landed.wait())
        finally:
            for flight in self._flights:
                flight.cancel()
            await asyncio.gather(*self._flights, return_exceptions=True)

    async def _start(self) -> None:
        """Sends what is due, as far as there is room."""
        while len(self._flights) < MOST:
            doubtful = sum(self._flights.values()) < MOST_DOUBTFUL
            claimed = await asyncio.to_thread(self._catalog.webhooks.claim, doubtful=doubtful, lease_s=self._lease_s)
            if claimed is None:
                return
            flight = asyncio.create_task(self._fly(claimed))
            self._flights[flight] = claimed.failures > 0
            flight.add_done_callback(self._land)

    def _land(self, flight: asyncio.Task[None]) -> None:
        del self._flights[flight]
        self._landed.set()

    async def _fly(self, claimed: Claimed) -> None:
        hook, delivery = claimed.hook, claimed.delivery
        try:
            answered = await post(
                hook.url, _headers(hook, delivery, claimed.body), claimed.body, self._allowed, self._resolve, self._tls
            )
        except Exception:
            log.exception("delivery %s to webhook %s failed on our side", delivery.id, hook.id)
            answered = Answered(error="internal")
        try:
            await asyncio.to_thread(self._note, claimed, answered)
        except Exception as error:
            log.warning("what became of delivery %s is not noted, and it is sent again: %s", delivery.id, error)

    def _note(self, claimed: Claimed, answered: Answered) -> None:
        """Raises Unavailable."""
        hook, webhooks = claimed.hook, self._catalog.webhooks
        tried = claimed.delivery.but(
            attempts=claimed.delivery.attempts + 1,
            last_attempt_at=now(),
            status_code=answered.status,
            error=answered.error,
        )
        if answered.error is None:
            webhooks.settle(hook.id, tried.but(outcome="delivered"))
            return
        wait = wait_s(tried.attempts, answered.retry_after_s, random.random(), self._waits)
        pause = pause_s(claimed.failures + 1, answered.retry_after_s, self._waits)
        gone = answered.status == _GONE
        given_up = gone or seconds_since(tried.created_at) + wait > GIVE_UP_S
        webhooks.settle(hook.id, tried.but(outcome="failed") if given_up else tried, wait_s=wait, pause_s=pause)
        if gone:
            turn_webhook_off(self._artifacts, self._catalog, hook, "its receiver answered 410 Gone")
        if gone or given_up or claimed.failures == 0:
            told = "is turned off" if gone else "has lost a delivery" if given_up else "has begun to fail"
            log.warning("webhook %s %s: %s", hook.id, told, answered.error, extra={"delivery": tried.id})


def _headers(hook: Webhook, delivery: Delivery, body: bytes) -> dict[str, str]:
    return {
        "Content-Type": "application/json",
        "User-Agent": "enginesmith-webhooks/1",
        "Enginesmith-Event": delivery.event,
        "Enginesmith-Delivery": delivery.id,
        "Enginesmith-Signature": signature(hook.secret, body, int(time.time())),
    }
