"""A connection to Redis that is patient for a stated time, then says Unavailable."""

from __future__ import annotations

from math import ceil
from typing import Any

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry

from app.errors import Unavailable
from app.storage.dial import dial

LONGEST_WAIT_S = 2.0
LOST = (ConnectionError, TimeoutError, BusyLoadingError, ReadOnlyError)


class PatientRedis(redis.Redis):
    """Tries again while Redis is gone; then raises Unavailable, our word for it."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except LOST as error:
            raise gone(error) from error
        except ResponseError as error:
            if str(error).startswith(("MISCONF", "OOM", "LOADING")):
                raise gone(error) from error
            raise


def is_refusal(error: RedisError) -> bool:
    """Whether it is the password, or the want of one, that is wrong."""
    return isinstance(error, AuthenticationError) or str(error).startswith(("NOAUTH", "WRONGPASS"))


def gone(error: RedisError) -> Unavailable:
    """What a caller is told when Redis cannot be reached, or can and refuses."""
    if is_refusal(error):
        return Unavailable(
            "Redis refuses the password of this service",
            code="redis_unavailable",
            hint="whoever runs it has to mend ENGINESMITH_REDIS_URL",
            headers={"Retry-After": "5"},
        )
    if str(error).startswith("OOM") or "maxmemory" in str(error):
        return Unavailable(
            "Redis is full, and takes nothing more",
            code="redis_unavailable",
            hint="whoever runs it has to raise its maxmemory, or lower ENGINESMITH_JOBS_KEPT_S",
            headers={"Retry-After": "5"},
        )
    return Unavailable(
        "Redis does not answer",
        code="redis_unavailable",
        hint="nothing is lost; try again in a few seconds",
        headers={"Retry-After": "5"},
    )


def connect(url: str, *, patience_s: float) -> PatientRedis:
    """A client whose every call is tried for about `patience_s` seconds. Text goes in and out as str."""
    # The first five waits grow from 0.05 s and make up 1.6 s together; the others are of the longest kind.
    retries = 5 + ceil(max(0.0, patience_s - LONGEST_WAIT_S) / LONGEST_WAIT_S)
    # Who has little patience has spent it all by the time that a server which hangs has not answered once.
    tried_again = LOST if patience_s > LONGEST_WAIT_S else tuple(kind for kind in LOST if kind is not TimeoutError)
    return dial(
        url,
        PatientRedis,
        decode_responses=True,
        retry=Retry(ExponentialBackoff(cap=LONGEST_WAIT_S, base=0.05), retries, supported_errors=tried_again),
        retry_on_error=list(tried_again),
        socket_connect_timeout=min(5.0, max(1.0, patience_s)),
        socket_timeout=min(10.0, max(2.0, patience_s)),
    )
