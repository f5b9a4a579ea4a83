"""Opens what a deployment needs aside, and takes down what nothing needs any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from pathlib import Path

from app.domain.deployments import Deployment
from app.domain.records import Version, parse_ref
from app.ending import end_this_process
from app.errors import DeviceLost, Internal, NotFound, Problem, Unavailable
from app.memory import private_bytes, trim
from app.metrics import Meters
from app.runtimes import Engine
from app.serving import shelf
from app.serving.budget import Budget
from app.serving.guard import Verdict, Watch
from app.serving.lane import Lane, Plan, default_max_batch, has_fixed_rows, open_engine
from app.serving.place import Lanes, Place
from app.serving.plans import Plans
from app.serving.shadow import Mirror, Tally
from app.settings import Settings
from app.storage.artifacts import Artifacts

_DRAIN_S = 60.0
Broken = Callable[[Place, Lane, Verdict], None]


class Loading:
    """One per process. Everything but `_open` runs on the event loop; `threads` are where engines are opened.

    find_version(ref): asked once per version, because a version never changes: what sleeps wakes without Redis.
    """

    def __init__(
        self,
        settings: Settings,
        artifacts: Artifacts,
        plans: Plans,
        threads: Executor,
        places: Callable[[], Collection[Place]],
        find_version: Callable[[str, int], Awaitable[Version]],
        broken: Broken,
        changed: Callable[[], None],
    ) -> None:
        self.meters = Meters()
        self.tallies: dict[tuple[str, str], Tally] = {}
        self.budget = Budget(settings.engine_memory_bytes)
        self.draining: set[asyncio.Task[None]] = set()
        self._settings = settings
        self._artifacts = artifacts
        self._plans = plans
        self._threads = threads
        self._places = places
        self._find_version = find_version
        self._broken = broken
        self._changed = changed
        self._versions: dict[str, Version] = {}
        self._shadow_meters = Meters()  # of their own: what no client asked for must not count as served
        self._opening = 0
        self._opened = 0
        self._met: set[str] = set()  # the runtimes of which there has been an engine

    async def bring(self, place: Place, to: Deployment) -> bool:
        """Opens the lanes that are not there yet, swaps them in, and has the old ones drain. False, with nothing done,
        for a place that may sleep and for which there is no room.

        Raises Problem, and then whatever served goes on.
        """
        if place.main is None and len(to.refs) > 1 and not place.can_sleep_at_once:
            # Nobody waits for a canary or a shadow that may not even load.
            await self._bring(place, to.main_only())
        found = await self._bring(place, to)
        if to.shadow is None:
            place.compared = None
        return found

    async def _bring(self, place: Place, to: Deployment) -> bool:
        versions = []
        for ref in to.refs:
            with _role(to, ref):
                versions.append(await self._version(to, ref))
        needed = {self._plan(to, version, versions[0]): version for version in versions}
        budget = self.budget
        if not budget.limit:
            await self._swap(place, to, needed)
            return True
        budget.refuse_too_large(to.name, sum(v.bytes for v in needed.values()))
        async with budget.turn:
            there = {lane.plan for lane in place.lanes}
            missing = sum(budget.expected(v, plan) for plan, v in needed.items() if plan not in there)
            if place.can_sleep_at_once and not budget.has_room(missing):
                place.served, place.asleep = to, True
                return False
            room = (place, self._places, self.drain, lambda: self.draining)
            await budget.make_room(missing, *room)
            old = await self._swap(place, to, needed)
            # It may hold more than was expected. Its own old lanes are about to go: they are nobody's fault.
            if not budget.has_room(-budget.of(old)):
                await budget.make_room(0, *room)
        return True

    async def _swap(self, place: Place, to: Deployment, needed: dict[Plan, Version]) -> list[Lane]:
        began = time.monotonic()
        shadow = place.mirror.lane if place.mirror else None
        # Lanes change between main and canary as they are; a shadow's has counters of its own.
        there = {lane.plan: lane for lane in (place.main, place.canary) if lane is not None}
        plans = {plan.ref: plan for plan in needed}
        fresh: list[Lane] = []

        async def lane(ref: str, known: dict[Plan, Lane], meters: Meters) -> Lane:
            plan = plans[ref]
            if plan not in known:
                with _role(to, ref):
                    known[plan] = await self._lane(to, plan, needed[plan], meters)
                fresh.append(known[plan])
            return known[plan]

        try:
            main = await lane(to.model, there, self.meters)
            canary = await lane(to.canary.model, there, self.meters) if to.canary else None
            if to.shadow is not None:
                shadows = {shadow.plan: shadow} if shadow else {}
                shadow = await lane(to.shadow.model, shadows, self._shadow_meters)
            else:
                shadow = None
            self.budget.refuse_too_large(to.name, self.budget.of({x for x in (main, canary, shadow) if x}))
        except BaseException:
            self.drain(fresh)
            raise
        self._watch(place, to, main, canary)
        mirror = self._mirror(place, to, shadow) if shadow is not None else None
        old = place.take(Lanes(main, canary, shadow), mirror, to, time.monotonic() - began)
        if place.wanted is None:  # deleted meanwhile
            old += place.give_up()
        self.drain(old)
        return old

    def _plan(self, to: Deployment, version: Version, main: Version) -> Plan:
        """Canary and shadow take as many rows as the main version, whatever they were built for."""
        settings, max_batch = self._settings, to.max_batch
        if max_batch is None and not has_fixed_rows(version) and default_max_batch(version) < default_max_batch(main):
            max_batch = default_max_batch(main)
        return Plan(
            version.ref,
            to.instances,
            max_batch,
            to.max_delay_ms,
            to.max_queue or settings.max_queue,
            to.threads,
            to.run_timeout_s or settings.run_timeout_s,
        )

    def _watch(self, place: Place, to: Deployment, main: Lane, canary: Lane | None) -> None:
        """A canary whose bounds are the same as before goes on being judged by what it did."""
        if canary is not main:
            main.watch = None
        if canary is not None and to.canary is not None:
            watch = canary.watch
            if watch is None or watch.canary != to.canary or watch.tripped:
                canary.watch = Watch(to.canary, lambda verdict: self._broken(place, canary, verdict))

    def _mirror(self, place: Place, to: Deployment, lane: Lane) -> Mirror:
        assert to.shadow is not None
        at, compared = (to.name, to.shadow.model), (to.model, to.shadow.model)
        is_same = place.compared == compared and at in self.tallies
        if is_same and place.mirror is not None and place.mirror.lane is lane:
            place.mirror.percent = to.shadow.percent
            return place.mirror
        if not is_same:  # figures of another pair of versions would say nothing of this one
            self.tallies[at], place.compared = Tally(), compared
        return Mirror(lane, to.shadow.percent, self.tallies[at], self._threads)

    async def _version(self, to: Deployment, ref: str) -> Version:
        if ref not in self._versions:
            name, number = parse_ref(ref)
            if number is None:
                raise Internal(f"deployment {to.name} names no exact version: {ref}")
            self._versions[ref] = await self._find_version(name, number)
        return self._versions[ref]

    async def _lane(self, to: Deployment, plan: Plan, version: Version, meters: Meters) -> Lane:
        def open_again() -> Engine:
            return self._open(plan, version)[0]

        is_alone = self._opening == 0
        self._opening += 1
        self._opened += 1
        number = self._opened
        try:
            loop = asyncio.get_running_loop()
            engine, grown = await loop.run_in_executor(self._threads, self._open, plan, version)
        finally:
            self._opening -= 1
        meter = meters.of(to.name, version.ref)
        lane = Lane(plan, version, engine, meter, open_again)
        self.budget.loaded(lane, grown if is_alone and number == self._opened else None)
        return lane

    def _open(self, plan: Plan, version: Version) -> tuple[Engine, int | None]:
        """In a thread: the engine, loaded and warmed, and by how much the process grew."""
        home = self._settings.scratch / "engines"
        version = self._plans.of_here(version)
        try:
            folder = shelf.fetch(self._artifacts, version, home)
        except NotFound as gone:
            if self._plans.forget(version):  # it went from the store, and is looked for, or built, again
                raise Unavailable(gone.detail) from gone
            raise
        if self.budget.limit:
            self._meet(version, folder, plan)
            trim()
        before = private_bytes()
        try:
            engine = open_engine(version, folder, plan, self._settings.threads)
        except DeviceLost as lost:
            end_this_process(lost.detail)
            raise
        except Exception:  # a library's own, too: what it says of a file that vanishes under it is its own affair
            if shelf.is_whole(folder, version):
                raise
            # Whoever tidied up, here or in another replica on this machine, did not know yet that it is wanted again.
            folder = shelf.fetch(self._artifacts, version, home)
            engine = open_engine(version, folder, plan, self._settings.threads)
        trim()  # of what compiling took: 100 MB of 650 for a ResNet-18
        after = private_bytes()
        return engine, after - before if before is not None and after is not None else None

    def _meet(self, version: Version, folder: Path, plan: Plan) -> None:
        """Opens a runtime's first engine for nothing. A library takes memory once for the whole process, most at
        that time (OpenVINO 13 MB, where a small engine is 4): that is not this deployment's."""
        if version.format not in self._met:
            # One that does not open says why when it is opened in earnest.
            with suppress(Exception):
                open_engine(version, folder, plan, self._settings.threads).close()
                self._met.add(version.format)

    def drain(self, lanes: list[Lane]) -> None:
        """Takes lanes down once whoever uses them has been answered."""
        if lanes:
            self._changed()
            task = asyncio.create_task(self._take_down(lanes))
            self.draining.add(task)
            task.add_done_callback(self.draining.discard)

    def forget(self) -> None:
        """What has not been served for a while is not told of any more."""
        served = {
            (place.name, ref)
            for place in self._places()
            for ref in (
                *(lane.plan.ref for lane in place.lanes),
                *(ref for of in (place.wanted, place.served) if of is not None for ref in of.refs),
            )
        }
        now = time.monotonic()
        for meters in (self.meters, self._shadow_meters):
            meters.keep(served, now)
        for key in [key for key, tally in self.tallies.items() if tally.is_over(key in served, now)]:
            del self.tallies[key]

    async def _take_down(self, lanes: list[Lane]) -> None:
        try:
            for lane in lanes:
                await lane.close(_DRAIN_S)
        finally:
            for lane in lanes:
                self.budget.unloaded(lane)
        self.forget()
        named: set[str] = set()
        for place in self._places():
            named |= {lane.plan.ref for lane in place.lanes}
            for of in (place.wanted, place.served):
                named |= set(of.refs if of is not None else ())
        for ref in self._versions.keys() - named:
            del self._versions[ref]
        home = self._settings.scratch / "engines"
        await asyncio.get_running_loop().run_in_executor(self._threads, shelf.clear, home, named)


@contextmanager
def _role(to: Deployment, ref: str) -> Iterator[None]:
    """An error of a canary or a shadow says that it is one."""
    role = None if ref == to.model else "canary" if to.canary is not None and ref == to.canary.model else "shadow"
    try:
        yield
    except Problem as problem:
        if role is not None:
            problem.detail = f"the {role} {ref} does not load: {problem.detail}"
        raise
    except Exception as error:
        if role is None:
            raise
        told = f"the {role} {ref} does not load: {type(error).__name__}: {error}"
        raise Internal(told[:400], code="engine_broken") from error
