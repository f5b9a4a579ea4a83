"""What one replica has under one deployment's name: what is wanted, what was tried, and the lanes that answer."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from app.domain.records import Deployment
from app.errors import Unavailable
from app.serving.lane import Lane


class Place:
    """What this replica has under one name. wanted: what should be; tried: what was last attempted."""

    def __init__(self, wanted: Deployment) -> None:
        self.name = wanted.name
        self.wanted: Deployment | None = wanted
        self.tried: Deployment | None = None
        self.main: Lane | None = None
        self.canary: Lane | None = None
        self.percent = 0.0
        self.status = "loading"
        self.error: dict[str, Any] | None = None
        self.failures = 0
        self.retry_at: float | None = None
        self.work: asyncio.Task[None] | None = None

    @property
    def lanes(self) -> list[Lane]:
        return [lane for lane in (self.main, self.canary) if lane is not None]

    def due(self) -> bool:
        """Whether something is to be loaded that is not being loaded already."""
        if self.work is not None and not self.work.done():
            return False
        return self.wanted != self.tried or (self.retry_at is not None and time.monotonic() >= self.retry_at)

    def report(self) -> dict[str, Any]:
        at = self.tried or self.wanted
        assert at is not None
        return {
            "generation": at.generation,
            "since": at.created_at,
            "status": self.status,
            "model": at.model,
            "serving": self.main.version.ref if self.main else None,
            "error": self.error,
        }

    def pick(self) -> Lane:
        """The lane for the next request. Raises Unavailable while there is none, with the reason."""
        if self.canary is not None and random.random() * 100 < self.percent:
            return self.canary
        if self.main is not None:
            return self.main
        if self.status == "failed" and self.error is not None:
            raise Unavailable(
                f"deployment {self.name!r} could not be loaded: {self.error['detail']}",
                code="deployment_failed",
                hint=self.error.get("hint"),
                headers={"Retry-After": "10"},
            )
        raise Unavailable(
            f"deployment {self.name!r} is loading",
            code="deployment_loading",
            hint="try again in a moment",
            headers={"Retry-After": "1"},
        )
