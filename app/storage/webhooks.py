"""Webhooks in Redis, and what is on its way to them."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from app.domain.webhooks import Delivery, Webhook, ping
from app.errors import Conflict, NotFound
from app.storage import webhook_scripts as scripts
from app.storage.redis import PatientRedis

HOOKS = "es:webhooks"
MOST = 32
LEASE_S = 30.0
MOST_FLYING = 2  # to one webhook


class Claimed(NamedTuple):
    """A delivery that is the caller's to send, until its lease ends. failures: of the webhook, in a row."""

    hook: Webhook
    delivery: Delivery
    body: bytes
    failures: int


class Standing(NamedTuple):
    """How a webhook does. failures: attempts in a row; the others count deliveries. dropped: where too many waited."""

    waiting: int
    failures: int
    delivered: int
    failed: int
    dropped: int


class Webhooks:
    """Every call may raise Unavailable when Redis is gone for longer than the connection is patient."""

    def __init__(self, redis: PatientRedis) -> None:
        self._redis: Any = redis
        self._add = redis.register_script(scripts.ADD)
        self._drop = redis.register_script(scripts.DROP)
        self._turn_off = redis.register_script(scripts.TURN_OFF)
        self._tell_one = redis.register_script(scripts.TELL_ONE)
        self._claim = redis.register_script(scripts.CLAIM)
        self._settle = redis.register_script(scripts.SETTLE)

    def add(self, hook: Webhook) -> bool:
        """Whether it is new. Raises Conflict when there are enough."""
        answer = self._add(keys=[HOOKS], args=[hook.id, hook.model_dump_json(), MOST])
        if answer == "full":
            raise Conflict(
                f"there are {MOST} webhooks already", code="too_many_webhooks", hint="DELETE one that is not needed"
            )
        return bool(answer == "added")

    def get(self, id: str) -> Webhook:
        """Raises NotFound."""
        held = self._redis.hget(HOOKS, id)
        if held is None:
            raise NotFound(f"no webhook {id!r}", code="webhook_not_found", hint="GET /v1/webhooks lists them")
        return Webhook.model_validate_json(held)

    def all(self) -> list[Webhook]:
        """By their id."""
        return [Webhook.model_validate_json(text) for _, text in sorted(self._redis.hgetall(HOOKS).items())]

    def drop(self, id: str) -> None:
        """With all that is on its way to it."""
        self._drop(keys=[HOOKS, *_places(id, *scripts.PARTS)], args=[id])

    def turn_off(self, hook: Webhook) -> bool:
        """hook: as it is now. What waits for it is forgotten. False where it was deleted."""
        places = _places(hook.id, "waiting", "due", "flying", "records", "bodies")
        return bool(self._turn_off(keys=[HOOKS, *places], args=[hook.id, hook.model_dump_json()]))

    def ping(self, id: str) -> Delivery:
        """Queues a delivery that tells nothing, for one webhook. Raises NotFound, Conflict for one that is off."""
        delivery, body = ping()
        record = delivery.model_dump_json()
        if not self._tell_one(keys=[HOOKS], args=[delivery.event, delivery.id, record, body, id]):
            hook = self.get(id)
            raise Conflict(
                f"webhook {id} is off: {hook.why_off}", code="webhook_off", hint="DELETE it, and make another"
            )
        return delivery

    # Sending --------------------------------------------------------------------------------------------------------

    def claim(self, *, doubtful: bool, lease_s: float = LEASE_S) -> Claimed | None:
        """The next delivery that is due, for this caller alone. doubtful: also to one whose last attempt failed."""
        found = self._claim(keys=[HOOKS], args=[int(lease_s * 1000), MOST_FLYING, "1" if doubtful else ""])
        if not found:
            return None
        hook, record, body, failures = found
        return Claimed(
            Webhook.model_validate_json(hook), Delivery.model_validate_json(record), body.encode(), int(failures)
        )

    def settle(self, hook: str, delivery: Delivery, *, wait_s: float = 0.0, pause_s: float = 0.0) -> bool:
        """After an attempt. wait_s: until the next one, where the delivery has no outcome. pause_s: for how long the
        webhook gets nothing, where the attempt failed. False where somebody else has ended it."""
        outcome: Literal["again", "delivered", "failed"] = delivery.outcome or "again"
        text = delivery.model_dump_json()
        args: list[str | int] = [hook, delivery.id, text, outcome, int(wait_s * 1000), int(pause_s * 1000)]
        return bool(self._settle(keys=[HOOKS], args=args))

    # Looking --------------------------------------------------------------------------------------------------------

    def standing(self, id: str) -> Standing:
        waiting, state = _places(id, "waiting", "state")
        held = self._redis.hgetall(state)
        counts = (int(held.get(name, 0)) for name in ("failures", "delivered", "failed", "dropped"))
        return Standing(int(self._redis.zcard(waiting)), *counts)

    def deliveries(self, id: str) -> list[tuple[Delivery, float | None]]:
        """The newest that wait, each with the Unix time of its next attempt, then the last that are over."""
        waiting, due, records, recent, state = _places(id, "waiting", "due", "records", "recent", "state")
        paused = float(self._redis.hget(state, "paused") or 0)
        found: list[tuple[Delivery, float | None]] = []
        for name in self._redis.zrevrange(waiting, 0, scripts.KEPT - 1):
            record, at = self._redis.hget(records, name), self._redis.zscore(due, name)
            if record is not None and at is not None:  # it was sent between our looks
                found.append((Delivery.model_validate_json(record), max(float(at), paused) / 1000))
        over = self._redis.lrange(recent, 0, scripts.KEPT - 1)
        return found + [(Delivery.model_validate_json(text), None) for text in over]


def _places(id: str, *parts: str) -> list[str]:
    return [f"es:webhook:{id}:{part}" for part in parts]
