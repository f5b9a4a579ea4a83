"""The records of deployments: what is to be served under a name, and what was ready last."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field

from app.domain.records import Name, Record


class Canary(Record):
    """A version that answers a share of the requests. Breaking a bound that is stated ends it: see `Returned`."""

    model: str
    percent: float = Field(ge=0, le=100)
    max_error_rate: float | None = Field(None, ge=0, le=1)
    max_p99_ms: float | None = Field(None, gt=0)
    min_requests: int | None = Field(None, ge=1)


class Shadow(Record):
    """A version that is sent copies of a share of the requests, and whose answers nobody gets."""

    model: str
    percent: float = Field(100, ge=0, le=100)


class Returned(Record):
    """A canary that broke a bound, and was taken back by the replica that saw it. figures: those it was judged by."""

    model: str
    percent: float
    reason: Literal["error_rate", "p99"]
    detail: str
    figures: dict[str, Any]
    replica: str
    at: str


class LastReady(Record):
    """The version that was ready last under a name, as the main one, of whichever generation; before: another one that
    was before it. made: the deployment's created_at, which tells it from another of the same name."""

    made: str
    generation: int
    model: str
    before: str | None = None


class Deployment(Record):
    """What is wanted under a name. generation grows with every change. previous: what a rollback goes to, as far as it
    was known when this was written; see `previous_of`."""

    name: Name
    model: str
    previous: str | None = None
    generation: int = 1
    instances: int = Field(1, ge=1, le=64)
    max_batch: int | None = Field(None, ge=1, le=65536)
    max_delay_ms: float = Field(0, ge=0, le=10_000)
    max_queue: int | None = Field(None, ge=1)
    run_timeout_s: float | None = Field(None, gt=0)
    threads: int | None = Field(None, ge=1, le=1024)  # of one engine; None: the setting
    canary: Canary | None = None
    shadow: Shadow | None = None
    returned: Returned | None = None
    force: bool = False
    created_at: str
    updated_at: str

    @property
    def refs(self) -> tuple[str, ...]:
        """Every version that it needs: the main one first."""
        return (self.model, *(part.model for part in (self.canary, self.shadow) if part is not None))

    def main_only(self, model: str | None = None) -> Self:
        """The same without canary and shadow, and of another version where one is given."""
        return self.but(model=model or self.model, canary=None, shadow=None)

    def previous_of(self, model: str, last: LastReady | None) -> str | None:
        """The version other than `model` that was ready last under this name: what has only ever failed is none."""
        if last is None or last.made != self.created_at:
            return self.previous if self.previous != model else None
        return last.model if last.model != model else last.before
