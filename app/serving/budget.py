"""How much memory the loaded engines hold, as far as it can be told, and which deployment gives way to another."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection

from app.domain.records import Version
from app.errors import Unprocessable
from app.serving.lane import Lane, Plan
from app.serving.place import Place

log = logging.getLogger("enginesmith.serving")
_MiB = 1024 * 1024


class Budget:
    """limit: bytes that all engines together may hold; 0 for no bound.

    What an engine holds is measured where it was loaded with nothing else being loaded, and is never taken for less
    than its files. Loading asks for room first. A swap needs room for the old and the new version: where only that is
    lacking, and no other deployment is left to give way, the old one goes on serving, and the bound is broken until it
    is taken down.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.turn = asyncio.Lock()  # with a bound, one deployment is loaded at a time
        self._held: dict[Lane, int] = {}
        self._took: dict[Plan, int] = {}

    @property
    def used(self) -> int:
        return sum(self._held.values())

    def of(self, lanes: Collection[Lane]) -> int:
        return sum(self._held.get(lane, 0) for lane in lanes)

    def expected(self, version: Version, plan: Plan) -> int:
        """What a lane will hold: what it did the last time, else at least its files."""
        return max(version.bytes, self._took.get(plan, 0))

    def loaded(self, lane: Lane, measured: int | None) -> None:
        """measured: by how much the process grew. Other things make it grow too: it is not wholly believed."""
        files = lane.version.bytes
        held = files if measured is None else max(files, min(measured, 4 * files + 128 * _MiB))
        self._held[lane] = self._took[lane.plan] = held

    def unloaded(self, lane: Lane) -> None:
        self._held.pop(lane, None)

    def refuse_too_large(self, name: str, needed: int) -> None:
        """Raises Unprocessable for what does not fit even alone."""
        if self.limit and needed > self.limit:
            raise Unprocessable(
                f"deployment {name!r} needs about {needed} bytes of memory for its engines, and all together may have "
                f"{self.limit}",
                code="over_memory_budget",
                hint="raise ENGINESMITH_ENGINE_MEMORY_BYTES, or deploy a smaller version, fewer instances or no shadow",
            )

    def has_room(self, needed: int) -> bool:
        return not self.limit or self.used + needed <= self.limit

    async def make_room(
        self,
        needed: int,
        place: Place,
        others: Callable[[], Collection[Place]],
        drain: Callable[[list[Lane]], None],
        draining: Callable[[], Collection[asyncio.Task[None]]],
    ) -> None:
        """Unloads what was asked least recently, until `needed` more bytes fit or nothing is left to unload.

        What was loaded a moment ago is kept for as long as loading it took: two deployments that only fit one at a time
        would otherwise do nothing but take turns. Those that wait for it meanwhile are bounded.
        """
        while not self.has_room(needed):
            if leaving := draining():
                await asyncio.wait(leaving)
                continue
            loaded = [p for p in others() if p is not place and p.lanes]
            if not loaded:
                return
            victim = min(loaded, key=lambda p: p.used)
            if victim.waiting or victim.kept_until > time.monotonic():
                await asyncio.sleep(max(0.01, victim.kept_until - time.monotonic()))
                continue
            log.info("deployment %s is unloaded to make room for %s", victim.name, place.name)
            drain(victim.give_up(asleep=True))
