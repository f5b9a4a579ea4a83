"""What happens to one place: it is brought to what is wanted, or woken; what fails is tried again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from app.domain.deployments import Deployment
from app.errors import Internal, PlanBuilding, Problem
from app.serving.loading import Loading
from app.serving.place import Place

log = logging.getLogger("enginesmith.serving")
_LOOK_S = 1.0  # whether a plan is there that a worker builds
_RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)


class Changes:
    """moved: called when the state of a place has changed."""

    def __init__(self, loading: Loading, moved: Callable[[], None]) -> None:
        self._loading = loading
        self._moved = moved

    def begin(self, place: Place, to: Deployment) -> asyncio.Task[None]:
        """The new lanes are loaded aside, then swapped in; the old ones drain. What fails leaves the old ones."""
        return asyncio.create_task(self._change(place, to), name=f"load {place.name}")

    def wake(self, place: Place) -> asyncio.Task[None]:
        """Loads what was unloaded to make room for others."""
        return asyncio.create_task(self._wake(place), name=f"wake {place.name}")

    async def _change(self, place: Place, to: Deployment) -> None:
        place.tried, place.retry_at = to, None
        if not place.failures:
            place.status, place.error = "loading", None
        self._moved()  # so that `loading` is reported
        try:
            await self._loading.bring(place, to)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            await self._fall_back(place, to)
            _fail(place, to, error)
        else:
            place.status, place.error, place.failures = "ready", None, 0
            place.can_sleep_at_once = False
        self._moved()

    async def _wake(self, place: Place) -> None:
        assert place.served is not None
        try:
            await self._loading.bring(place, place.served)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            place.asleep, failed = False, place.served
            await self._fall_back(place, failed)
            _fail(place, failed, error, again=True)
        self._moved()

    async def _fall_back(self, place: Place, failed: Deployment) -> None:
        """Where nothing serves, because this replica has just begun or something slept: the main version goes on
        without a canary or shadow that fails, and the one that was ready last where the wanted one never was."""
        others = [failed.main_only()] if len(failed.refs) > 1 else []
        if last := place.fallback(failed):
            others.append(failed.main_only(last))
        for other in others:
            if place.main is not None or place.asleep or place.wanted is None:
                return
            try:
                await self._loading.bring(place, other)
            except Exception as error:
                log.warning("deployment %s: nor does %s load: %s", place.name, other.model, error)
            else:
                place.can_sleep_at_once = False
                log.warning("deployment %s goes on with %s", place.name, other.model)


def _fail(place: Place, to: Deployment, error: Exception, *, again: bool = False) -> None:
    """again: to be tried once more whatever the reason is; it has worked before."""
    if isinstance(error, PlanBuilding):
        if place.status != "building":
            log.info("deployment %s: %s", to.name, error.detail)
        place.status, place.error, place.failures = "building", error.body(), 1
        place.retry_at = time.monotonic() + _LOOK_S
        return
    problem = error if isinstance(error, Problem) else _unforeseen(error)
    log.warning("deployment %s: %s does not load: %s", to.name, to.model, problem.detail)
    place.status, place.error = "failed", problem.body()
    if problem.retryable or again:
        place.retry_at = time.monotonic() + _RETRY_S[min(place.failures, len(_RETRY_S) - 1)]
        place.failures += 1


def _unforeseen(error: Exception) -> Internal:
    log.error("loading an engine failed", exc_info=error)
    return Internal(f"the engine could not be loaded: {type(error).__name__}: {error}"[:400], code="engine_broken")
