"""What a PUT of a deployment may say."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.domain.spec import Ref
from app.serving.guard import MIN_REQUESTS


class WantedCanary(BaseModel):
    """With a bound, it is taken back by itself: see `returned` in the answer. Without one, only people take it back."""

    model_config = ConfigDict(extra="forbid")

    model: Ref
    percent: float = Field(ge=0, le=100, allow_inf_nan=False, description="share of the requests that it answers")
    max_error_rate: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="bound: the share (0 to 1) of its newest requests that may fail by the service's fault: 5xx, and "
        "refusals of what the main version then answers; not a client's own deadline (504)",
    )
    max_p99_ms: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="bound: the p99 of its newest requests, in the queue and the engine; a deadline that passed "
        "later than this counts as slow",
    )
    min_requests: int | None = Field(
        None,
        ge=1,
        le=100_000,
        strict=True,
        description=f"requests before it is judged, by each replica for itself; default: {MIN_REQUESTS}",
    )


class WantedShadow(BaseModel):
    """Gets copies of requests that the main version has answered. Its answers are compared, counted and thrown away."""

    model_config = ConfigDict(extra="forbid")

    model: Ref
    percent: float = Field(100, ge=0, le=100, allow_inf_nan=False, description="share of the requests that are copied")


class Wanted(BaseModel):
    """The body of PUT."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: Ref = Field(description="`name@3`, or `name` for its newest engine that was not rejected")
    instances: int = Field(1, ge=1, le=64, strict=True, description="runs of the engine that may go on at once")
    max_batch: int | None = Field(
        None, ge=1, le=65536, strict=True, description="default: what the engine was built for"
    )
    max_delay_ms: float = Field(0, ge=0, le=10_000, description="how long a batch waits for more; 0 adds no wait")
    max_queue: int | None = Field(None, ge=1, strict=True, description="rows that may wait before the answer is 429")
    run_timeout_s: float | None = Field(
        None, gt=0, le=86_400, description="a run that takes longer hangs: its requests fail, its instance is replaced"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, strict=True, description="of the engine; default: what the service was started with"
    )
    canary: WantedCanary | None = None
    shadow: WantedShadow | None = None
    force: bool = Field(False, strict=True, description="deploy a version whose verdict is rejected or unproven")


EXAMPLES: dict[str, Any] = {
    "plain": {"model": "digits@5"},
    "tuned": {"model": "digits@5", "instances": 2, "max_batch": 32, "max_queue": 256},
    "canary": {"model": "digits@5", "canary": {"model": "digits@6", "percent": 5}},
    "canary with bounds": {
        "model": "digits@5",
        "canary": {
            "model": "digits@6",
            "percent": 5,
            "max_error_rate": 0.01,
            "max_p99_ms": 25,
            "min_requests": 200,
        },
    },
    "shadow": {"model": "digits@5", "shadow": {"model": "digits@6", "percent": 20}},
}
