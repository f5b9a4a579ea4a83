"""Requests for a deployment that sleeps wait until it is loaded: once for all of them, bounded in number and time."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from app.domain.absent import no_deployment
from app.errors import DeadlineExceeded, Overloaded, Unavailable
from app.serving.place import Place
from app.settings import Settings


async def wake(
    place: Place, settings: Settings, deadline: float | None, load: Callable[[], asyncio.Task[None]]
) -> None:
    """Returns once the place has a lane. load: begins to load it; called where nothing is being loaded there already.

    deadline: on time.monotonic's clock. Raises NotFound when it is deleted meanwhile; Overloaded when too many wait;
    Unavailable when it takes too long or does not load; DeadlineExceeded.
    """
    again = {"Retry-After": str(min(60, max(1, math.ceil(place.took_s))))}
    if place.waiting >= settings.wake_queue:
        raise Overloaded(
            f"deployment {place.name!r} is being loaded again, and {place.waiting} requests wait for it already",
            headers=again,
        )
    patient_until = time.monotonic() + settings.wake_patience_s
    until = patient_until if deadline is None else min(patient_until, deadline)
    place.waiting += 1
    try:
        while place.main is None:
            if place.wanted is None:
                raise no_deployment(place.name)
            if not place.is_busy:
                if not place.asleep:
                    raise place.absence()
                place.work = load()
            assert place.work is not None
            done, _ = await asyncio.wait([place.work], timeout=max(0.0, until - time.monotonic()))
            if not done and until == deadline:
                raise DeadlineExceeded("the deadline passed while the deployment was being loaded again")
            if not done:
                raise Unavailable(
                    f"deployment {place.name!r} is being loaded again",
                    code="deployment_loading",
                    hint="try again in a moment; more ENGINESMITH_ENGINE_MEMORY_BYTES would keep it loaded",
                    headers=again,
                )
    finally:
        place.waiting -= 1
