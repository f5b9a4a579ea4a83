"""Reconciles the deployments wanted with the engines loaded, and finds the lane that answers a request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy.typing as npt

from app import observe
from app.domain.absent import no_deployment
from app.domain.deployments import Deployment, LastReady
from app.domain.records import Version
from app.errors import NotFound, Unavailable
from app.queue import Queue
from app.serving import fleet_metrics, oip_metadata
from app.serving.changes import Changes
from app.serving.guard import Verdict, taken_back
from app.serving.lane import Lane
from app.serving.loading import Loading
from app.serving.place import Place
from app.serving.plans import Plans
from app.serving.pulse import Pulse
from app.serving.reports import Reports
from app.serving.served import Standing
from app.serving.waking import wake
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog, Stale

log = logging.getLogger("enginesmith.serving")
T = TypeVar("T")
Named = Mapping[str, npt.NDArray[Any]]
_STOP_S = 10.0


class Fleet:
    """One per process. Everything but `__init__` runs on the event loop."""

    def __init__(self, settings: Settings, catalog: Catalog, artifacts: Artifacts, queue: Queue) -> None:
        self.replica = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._settings = settings
        self._catalog = catalog
        self._places: dict[str, Place] = {}
        self._nudged = asyncio.Event()
        self._turned = asyncio.Event()  # replaced by a fresh one at the end of every pass
        self._begun = 0
        self._passed = 0
        self._known = False  # whether Redis has ever said what is wanted
        self._lost = True  # whether it failed to the last time
        self._reports = Reports(catalog, self.replica)
        self._returns: dict[str, int] = {}
        self._watch: asyncio.Task[None] | None = None
        self._pulse = Pulse(catalog)
        # Threads of their own: a Redis that hangs must not hold up loading, nor either of them a prediction.
        self._asking = ThreadPoolExecutor(1, thread_name_prefix="fleet-redis")
        self._opening = ThreadPoolExecutor(2, thread_name_prefix="fleet-load")
        self.decoding = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix="decode")
        self._loading = Loading(
            settings,
            artifacts,
            Plans(artifacts, catalog, queue),
            self._opening,
            self.places,
            self._find_version,
            self._canary_broke,
            self._changed,
        )
        self._changes = Changes(self._loading, self._moved)
        self.meters = self._loading.meters
        self.listeners: list[Callable[[], None]] = []  # told of other lanes before the old ones go down

    async def start(self) -> None:
        self._watch = asyncio.create_task(self._reconcile(), name="fleet")

    async def stop(self) -> None:
        """Drains every lane and answers whoever waits; tells the others that this replica is gone."""
        tasks = [self._watch, *(place.work for place in self._places.values())]
        for task in filter(None, tasks):
            task.cancel()
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)
        lanes = [lane for place in self._places.values() for lane in place.give_up()]
        names = list(self._places)
        self._places.clear()
        draining = self._loading.draining
        await asyncio.gather(*(lane.close(_STOP_S) for lane in lanes), *draining, return_exceptions=True)
        if not self._lost and names:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(2.0):
                    await self._ask(self._reports.write_gone, names)
        self._pulse.stop()
        for pool in (self._asking, self._opening, self.decoding):
            pool.shutdown(wait=False, cancel_futures=True)

    # Requests -----------------------------------------------------------------------------------------------------

    def lane(self, name: str, version: str | None = None) -> Lane:
        """The lane that answers for a deployment now. version: a number, of the main version or of the canary.

        Raises NotFound, also for a version that is not served; Unavailable when it loads, sleeps or has failed.
        """
        place = self._places.get(name)
        if place is None:
            if self._lost:
                raise Unavailable(
                    "the deployments are not known yet: Redis does not answer", headers={"Retry-After": "2"}
                )
            raise no_deployment(name)
        return place.pick(version)

    async def find(
        self, name: str, version: str | None = None, *, deadline: float | None = None, patience_s: float = 1.0
    ) -> Lane:
        """Like `lane`, and patient: a deployment that was made a moment ago, elsewhere perhaps, is waited for, and one
        that sleeps is loaded. Waits for nothing where there is a lane. deadline: on time.monotonic's clock.

        Raises what `lane` does; Overloaded when too many wait already; DeadlineExceeded.
        """
        place = self._places.get(name)
        if place is not None and place.main is not None:
            return place.pick(version)
        until = time.monotonic() + patience_s
        until = until if deadline is None else min(until, deadline)
        needed = self._begun + 1
        if place is None or not place.asleep:
            self.nudge()
        while True:
            place, turned, left = self._places.get(name), self._turned, until - time.monotonic()
            if place is not None and place.asleep:
                if version is not None and version not in place.numbers():
                    raise place.no_version(version)
                await wake(place, self._settings, deadline, partial(self._changes.wake, place))
                return place.pick(version)
            try:
                return self.lane(name, version)
            except NotFound:
                if place is not None or self._passed >= needed or left <= 0:
                    raise
            except Unavailable as error:
                if left <= 0 or error.code == "deployment_failed":
                    raise
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, left)):
                    await turned.wait()

    def served(self, name: str) -> list[str]:
        """The numbers of the versions that answer under a name, the main one first; none for an unknown name."""
        place = self._places.get(name)
        return [] if place is None else place.numbers()

    def main_beside(self, name: str, lane: object) -> Lane | None:
        """The main lane beside a canary; None where `lane` is no canary."""
        place = self._places.get(name)
        return place.main if place is not None and lane is place.canary and lane is not place.main else None

    def mirror(self, name: str, lane: object, inputs: Named, outputs: Named) -> None:
        """Tells the shadow, if there is one, of a request that `lane` has just answered. Costs nothing where there is
        none, never waits, never raises. Only answers of the main version are compared: a canary is no yardstick."""
        place = self._places.get(name)
        if place is not None and place.mirror is not None and lane is place.main:
            place.mirror.take(inputs, outputs)

    # What is the matter -------------------------------------------------------------------------------------------

    def nudge(self) -> None:
        """Something has changed: look now, not at the next poll."""
        self._nudged.set()

    async def settled(self) -> None:
        """Waits until what Redis held when this was called has been seen here (not: loaded), or for two seconds."""
        needed = self._begun + 1
        self.nudge()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                while self._passed < needed:
                    await self._turned.wait()

    def missing(self) -> dict[str, str]:
        """Deployments that are wanted and not served as wanted by this replica, with the reason. One that sleeps is not
        missing: a request has it loaded."""
        found = {}
        for name, place in self._places.items():
            if place.status != "ready" or place.tried != place.wanted:
                detail = (place.error or {}).get("detail")
                found[name] = f"{place.status}: {detail}" if detail else place.status
        return found

    def unserved(self) -> list[str]:
        """Deployments for which a request would get no answer now, of any version."""
        return sorted(name for name, place in self._places.items() if place.main is None and not place.asleep)

    def owed(self) -> list[str]:
        """Those of them that had answered before, or were to when this replica began: see Place.is_owed."""
        return sorted(name for name, place in self._places.items() if place.is_owed)

    def standing(self, name: str) -> Standing:
        """See Place.standing. Nothing for an unknown name."""
        place = self._places.get(name)
        return [] if place is None else place.standing()

    def names(self) -> list[str]:
        """Every deployment wanted."""
        return sorted(self._places)

    async def redis_answers(self, patience_s: float = 1.0) -> bool:
        """Whether it answers now, and has ever said what is wanted."""
        return await self._pulse.beats(patience_s) and self._known

    def places(self) -> Collection[Place]:
        """What there is under each name."""
        return self._places.values()

    @property
    def known(self) -> bool:
        """Whether Redis has ever said what is wanted."""
        return self._known

    async def statistics(self) -> list[dict[str, Any]]:
        """Of every version served, as Triton writes them."""
        found = ((name, ref) for name, place in sorted(self._places.items()) for ref in place.refs())
        return [oip_metadata.statistics(self.meters.of(name, ref)) for name, ref in found]

    def exposition(self) -> str:
        """Metrics of every deployment served here."""
        self._loading.forget()
        own = fleet_metrics.lines(self._places, self.missing(), self._loading, self._returns)
        return "\n".join(own) + "\n" + self.meters.exposition()

    async def scrape(self) -> str:
        """Every metric of the service: HTTP's and the deployments'."""
        return observe.exposition().decode() + self.exposition()

    # Towards what is wanted ---------------------------------------------------------------------------------------

    async def _ask(self, question: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._asking, question, *args)

    async def _find_version(self, name: str, number: int) -> Version:
        return await self._ask(self._catalog.version, name, number)

    async def _reconcile(self) -> None:
        """The one loop. Whatever goes wrong in a pass, the next one comes; what is loaded goes on serving."""
        while True:
            self._nudged.clear()
            self._begun += 1
            try:
                if self._apply(*await self._ask(self._reports.read)) or not self._known:
                    self._known = True
                    self._changed()
                self._lost = False
                await self._return_canaries()
                due, news = self._reports.due(self._places), self._reports.news(self._places)
                if due or news:
                    await self._ask(self._reports.write, due, news)
                    self._reports.written(due)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if not self._lost:
                    log.warning("the deployments cannot be read, and those loaded go on: %s", error)
                self._lost = True
            self._passed = self._begun
            turned, self._turned = self._turned, asyncio.Event()
            turned.set()
            with contextlib.suppress(TimeoutError):
                # Not wait_for: Python 3.11's swallows a cancel that comes together with the nudge.
                async with asyncio.timeout(self._settings.poll_s):
                    await self._nudged.wait()

    def _apply(self, deployments: list[Deployment], last_ready: Mapping[str, LastReady]) -> bool:
        """Whether something else is wanted than before."""
        is_other = False
        wanted = {d.name: d for d in deployments}
        for place in self._places.values() if self.listeners else ():
            place.notice_use()
        for name in [n for n in self._places if n not in wanted]:
            gone = self._places.pop(name)
            gone.wanted, is_other = None, True
            self._returns.pop(name, None)
            self._loading.drain(gone.give_up())
        for name, deployment in wanted.items():
            if name not in self._places:
                self._places[name] = Place(deployment)
                self._places[name].can_sleep_at_once = self._places[name].from_start = not self._known
                is_other = True
            place = self._places[name]
            place.last = last if (last := last_ready.get(name)) and last.made == deployment.created_at else None
            if place.wanted != deployment:
                place.wanted, place.failures, place.retry_at = deployment, 0, None
                is_other = True
            if place.due():
                place.work = self._changes.begin(place, deployment)
        return is_other

    def _changed(self) -> None:
        for listener in self.listeners:
            listener()

    def _moved(self) -> None:
        """Something begins to be loaded, has been, or has failed to."""
        self._changed()
        self.nudge()

    def _canary_broke(self, place: Place, lane: Lane, verdict: Verdict) -> None:
        """From now on it gets no request here; the next pass takes it back for everybody."""
        if place.canary is lane:
            log.warning("deployment %s: canary %s is taken back: %s", place.name, lane.plan.ref, verdict.detail)
            place.verdict, place.percent = verdict, 0.0
            self._changed()
            self.nudge()

    async def _return_canaries(self) -> None:
        """Writes that a canary is over: a compare-and-set, so that of several replicas, or of a replica and a person,
        the first one wins; the others take over what stands then."""
        for place in list(self._places.values()):
            was, judged, verdict = place.wanted, place.served, place.verdict
            if verdict is None or was is None or was.canary is None or judged is None or was != judged:
                continue
            after = taken_back(was, was.canary, verdict, self.replica)
            put = partial(self._catalog.put_deployment, was_generation=was.generation, was_made=was.created_at)
            try:
                await self._ask(put, after)
                self._returns[place.name] = self._returns.get(place.name, 0) + 1
            except Stale:
                log.info("deployment %s was changed by somebody else first", place.name)
            self.nudge()
