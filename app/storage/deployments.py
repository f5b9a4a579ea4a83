"""Deployments in Redis: what is wanted, what was ready last, and what every replica says it serves."""

from __future__ import annotations

import json
from typing import Any

from app.domain.absent import no_deployment
from app.domain.deployments import Deployment, LastReady
from app.storage import scripts
from app.storage.redis import PatientRedis
from app.storage.trials import Stale

REPLICA_TTL_S = 10


class Deployments:
    """Every call may raise Unavailable when Redis is gone for longer than the connection is patient."""

    def __init__(self, redis: PatientRedis) -> None:
        self.redis: Any = redis
        self._deploy = redis.register_script(scripts.DEPLOY)
        self._ready = redis.register_script(scripts.READY)

    def deployment(self, name: str) -> Deployment:
        """Raises NotFound."""
        held = self.redis.hget("es:deployments", name)
        if held is None:
            raise no_deployment(name)
        return Deployment.model_validate_json(held)

    def deployments(self) -> list[Deployment]:
        return [Deployment.model_validate_json(d) for _, d in sorted(self.redis.hgetall("es:deployments").items())]

    def put_deployment(
        self, deployment: Deployment, *, was_generation: int | None, was_made: str | None = None
    ) -> Deployment:
        """was_generation: of what it replaces; None when it must be new. was_made: that one's created_at, to tell it
        from another of the same name. Raises Stale when somebody else was first."""
        expected = "" if was_generation is None else str(was_generation)
        # What is not used is not written, so that an older app on the same Redis can still read it.
        text = deployment.model_dump_json(exclude_none=True)
        if not self._deploy(keys=["es:deployments"], args=[deployment.name, expected, was_made or "", text]):
            raise Stale(f"deployment {deployment.name!r} was changed by somebody else", hint="look at it and try again")
        return deployment

    def drop_deployment(self, name: str) -> None:
        self.redis.hdel("es:deployments", name)
        self.redis.hdel("es:deployments:ready", name)

    def last_ready(self, name: str) -> LastReady | None:
        """What was ready last under a name; perhaps of a deployment that was deleted since: see `made`."""
        held = self.redis.hget("es:deployments:ready", name)
        return None if held is None else LastReady.model_validate_json(held)

    def all_last_ready(self) -> dict[str, LastReady]:
        """By name."""
        held = self.redis.hgetall("es:deployments:ready")
        return {name: LastReady.model_validate_json(text) for name, text in held.items()}

    def note_ready(self, name: str, ready: LastReady) -> None:
        """Keeps that a version is ready, unless a newer generation was. Beside the deployment, not in it: its
        generation stays, and an older app can still read it."""
        place = ["es:deployments", "es:deployments:ready"]
        self._ready(keys=place, args=[name, ready.made, ready.generation, ready.model])

    def report_replica(self, replica: str, name: str, report: dict[str, Any]) -> None:
        """What one replica serves under a name; forgotten after 10 s."""
        self.redis.set(f"es:replica:{name}:{replica}", json.dumps({"replica": replica} | report), ex=REPLICA_TTL_S)

    def replicas(self, name: str) -> list[dict[str, Any]]:
        return texts_of(self.redis, f"es:replica:{name}:*")


def texts_of(redis: Any, pattern: str) -> list[dict[str, Any]]:
    """The JSON held under every key of a pattern, by the keys' order."""
    held = (redis.get(k) for k in sorted(redis.scan_iter(pattern, count=500)))
    return [json.loads(h) for h in held if h]
