"""Reconciles the deployments wanted with the engines loaded: fetch, load aside, warm, swap, drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from app.domain.records import Deployment, parse_ref
from app.errors import Internal, NotFound, Problem, Unavailable
from app.metrics import Meters
from app.serving import shelf
from app.serving.lane import Lane, Plan, open_engine
from app.serving.place import Place
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog

log = logging.getLogger("enginesmith.serving")
T = TypeVar("T")
_DRAIN_S = 60.0
_STOP_S = 10.0
_REPORT_S = 3.0  # reports live for 10
_RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)


class Fleet:
    """One per process. Everything but `__init__` runs on the event loop."""

    def __init__(self, settings: Settings, catalog: Catalog, artifacts: Artifacts) -> None:
        self.replica = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.meters = Meters()
        self._settings = settings
        self._catalog = catalog
        self._artifacts = artifacts
        self._places: dict[str, Place] = {}
        self._draining: set[asyncio.Task[None]] = set()
        self._nudged = asyncio.Event()
        self._turned = asyncio.Event()  # replaced by a fresh one at the end of every pass
        self._begun = 0
        self._ended = 0
        self._known = False  # whether Redis has ever said what is wanted
        self._lost = True  # whether it failed to the last time
        self._reported: dict[str, tuple[float, dict[str, Any]]] = {}
        self._watch: asyncio.Task[None] | None = None
        self._ping: asyncio.Future[None] | None = None
        # Threads of their own: a Redis that hangs must not hold up loading, nor either of them a prediction.
        self._asking = ThreadPoolExecutor(1, thread_name_prefix="fleet-redis")
        self._loading = ThreadPoolExecutor(2, thread_name_prefix="fleet-load")
        self._pinging = ThreadPoolExecutor(1, thread_name_prefix="fleet-ping")
        self.decoding = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix="decode")

    async def start(self) -> None:
        self._watch = asyncio.create_task(self._reconcile(), name="fleet")

    async def stop(self) -> None:
        """Drains every lane and answers whoever waits; tells the others that this replica is gone."""
        tasks = [self._watch, *(place.work for place in self._places.values())]
        for task in filter(None, tasks):
            task.cancel()
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)
        lanes = [lane for place in self._places.values() for lane in place.lanes]
        names = list(self._places)
        self._places.clear()
        await asyncio.gather(*(lane.close(_STOP_S) for lane in lanes), *self._draining, return_exceptions=True)
        if not self._lost and names:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._ask(self._say_gone, names), 2.0)
        for pool in (self._asking, self._loading, self._pinging, self.decoding):
            pool.shutdown(wait=False, cancel_futures=True)

    def lane(self, name: str) -> Lane:
        """The lane that answers for a deployment now. Raises NotFound; Unavailable when it loads or has failed."""
        place = self._places.get(name)
        if place is None:
            if self._lost:
                raise Unavailable(
                    "the deployments are not known yet: Redis does not answer", headers={"Retry-After": "2"}
                )
            raise NotFound(
                f"no deployment {name!r}", code="deployment_not_found", hint=f"PUT /v1/deployments/{name} makes it"
            )
        return place.pick()

    async def find(self, name: str, patience_s: float = 1.0) -> Lane:
        """Like `lane`, and patient: a deployment that was made a moment ago, elsewhere perhaps, is waited for."""
        place = self._places.get(name)
        if place is not None and (place.main is not None or place.status == "failed"):
            return self.lane(name)
        until = time.monotonic() + patience_s
        needed = self._begun + 1
        self.nudge()
        while True:
            left = until - time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._turned.wait(), max(0.0, left))
            try:
                return self.lane(name)
            except NotFound:
                if self._ended >= needed or left <= 0:
                    raise
            except Unavailable as error:
                if left <= 0 or error.code == "deployment_failed":
                    raise

    def nudge(self) -> None:
        """Something has changed: look now, not at the next poll."""
        self._nudged.set()

    async def settled(self) -> None:
        """Waits until what Redis held when this was called has been seen here (not: loaded), or for two seconds."""
        needed = self._begun + 1
        self.nudge()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                while self._ended < needed:
                    await self._turned.wait()

    def missing(self) -> dict[str, str]:
        """Deployments that are wanted and not served as wanted by this replica, with the reason."""
        found = {}
        for name, place in self._places.items():
            if place.status != "ready" or place.tried != place.wanted:
                detail = (place.error or {}).get("detail")
                found[name] = f"{place.status}: {detail}" if detail else place.status
        return found

    def names(self) -> list[str]:
        """Every deployment wanted."""
        return sorted(self._places)

    async def redis_answers(self, patience_s: float = 1.0) -> bool:
        """Asked now; one question at a time, so that a Redis that hangs holds one thread and not many."""
        if self._ping is None or self._ping.done():
            self._ping = asyncio.get_running_loop().run_in_executor(self._pinging, self._catalog.ping)
            self._ping.add_done_callback(lambda ping: ping.cancelled() or ping.exception())
        done, _ = await asyncio.wait([self._ping], timeout=patience_s)
        return bool(done) and not self._ping.cancelled() and self._ping.exception() is None and self._known

    def exposition(self) -> str:
        """Metrics of every deployment served here."""
        lines = [
            "# HELP enginesmith_deployment_ready 1 when served as wanted",
            "# TYPE enginesmith_deployment_ready gauge",
        ]
        missing = self.missing()
        lines += [
            f'enginesmith_deployment_ready{{deployment="{n}"}} {int(n not in missing)}' for n in sorted(self._places)
        ]
        lines += ["# HELP enginesmith_queue_rows Rows that wait", "# TYPE enginesmith_queue_rows gauge"]
        for name, place in sorted(self._places.items()):
            rows = sum(lane.batcher.waiting_rows for lane in place.lanes)
            lines.append(f'enginesmith_queue_rows{{deployment="{name}"}} {rows}')
        return "\n".join(lines) + "\n" + self.meters.exposition()

    async def _ask(self, question: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._asking, question, *args)

    async def _reconcile(self) -> None:
        """The one loop. Whatever goes wrong in a pass, the next one comes; what is loaded goes on serving."""
        while True:
            self._nudged.clear()
            self._begun += 1
            try:
                self._apply(await self._ask(self._catalog.deployments))
                self._known, self._lost = True, False
                await self._report()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if not self._lost:
                    log.warning("the deployments cannot be read, and those loaded go on: %s", error)
                self._lost = True
            self._ended = self._begun
            turned, self._turned = self._turned, asyncio.Event()
            turned.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._nudged.wait(), self._settings.poll_s)

    def _apply(self, deployments: list[Deployment]) -> None:
        wanted = {d.name: d for d in deployments}
        for name in [n for n in self._places if n not in wanted]:
            gone = self._places.pop(name)
            gone.wanted = None
            self._reported.pop(name, None)
            self._drain(gone.lanes)
        for name, deployment in wanted.items():
            place = self._places.setdefault(name, Place(deployment))
            if place.wanted != deployment:
                place.wanted, place.failures, place.retry_at = deployment, 0, None
            if place.due():
                place.work = asyncio.create_task(self._change(place, deployment), name=f"load {name}")

    async def _change(self, place: Place, to: Deployment) -> None:
        """Brings one place to what is wanted: the new lanes are loaded aside, then swapped in; the old ones drain."""
        place.tried, place.retry_at = to, None
        if place.status != "failed" or not place.failures:
            place.status, place.error = "loading", None
        self.nudge()  # so that `loading` is reported
        fresh: list[Lane] = []
        try:
            for ref in filter(None, (to.model, to.canary.model if to.canary else None)):
                fresh.append(await self._lane(place, to, ref))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            problem = error if isinstance(error, Problem) else _unforeseen(error)
            log.warning("deployment %s: %s does not load: %s", to.name, to.model, problem.detail)
            place.status, place.error = "failed", problem.body()
            if problem.retryable:
                place.retry_at = time.monotonic() + _RETRY_S[min(place.failures, len(_RETRY_S) - 1)]
                place.failures += 1
            self._drain([lane for lane in fresh if lane not in place.lanes])
        else:
            old = place.lanes
            place.main, place.canary = fresh[0], fresh[1] if to.canary else None
            place.percent = to.canary.percent if to.canary else 0.0
            place.status, place.error, place.failures = "ready", None, 0
            deleted = place.wanted is None
            self._drain([*old, *fresh] if deleted else [lane for lane in old if lane not in fresh])
        self.nudge()

    async def _lane(self, place: Place, to: Deployment, ref: str) -> Lane:
        """A lane for a version: the one that is there already, if it was opened in the same way."""
        plan = Plan(ref, to.instances, to.max_batch, to.max_delay_ms, to.max_queue or self._settings.max_queue)
        for lane in place.lanes:
            if lane.plan == plan:
                return lane
        name, number = parse_ref(ref)
        if number is None:
            raise Internal(f"deployment {to.name} names no exact version: {ref}")
        version = await self._ask(self._catalog.version, name, number)

        def load() -> Any:
            folder = shelf.fetch(self._artifacts, version, self._settings.scratch / "engines")
            try:
                return open_engine(version, folder, plan, self._settings.threads)
            except Exception:  # a library's own, too: what it says of a file that vanishes under it is its own affair
                if shelf.is_whole(folder, version):
                    raise
            # Whoever tidied up, here or in another replica on this machine, did not know yet that it is wanted again.
            return open_engine(
                version, shelf.fetch(self._artifacts, version, folder.parent), plan, self._settings.threads
            )

        engine = await asyncio.get_running_loop().run_in_executor(self._loading, load)
        return Lane(plan, version, engine, self.meters.of(to.name, str(version.version)))

    def _drain(self, lanes: list[Lane]) -> None:
        if lanes:
            task = asyncio.create_task(self._take_down(lanes))
            self._draining.add(task)
            task.add_done_callback(self._draining.discard)

    async def _take_down(self, lanes: list[Lane]) -> None:
        for lane in lanes:
            await lane.close(_DRAIN_S)
        named = {lane.plan.ref for place in self._places.values() for lane in place.lanes}
        for place in self._places.values():
            if place.wanted is not None:
                named |= {place.wanted.model, *([place.wanted.canary.model] if place.wanted.canary else [])}
        await asyncio.get_running_loop().run_in_executor(
            self._loading, shelf.clear, self._settings.scratch / "engines", named
        )

    async def _report(self) -> None:
        """Writes what changed, and what would otherwise be forgotten."""
        due = {}
        for name, place in self._places.items():
            report, at = place.report(), time.monotonic()
            last = self._reported.get(name)
            if last is None or last[1] != report or at - last[0] > _REPORT_S:
                due[name] = (at, report)
        if due:
            await self._ask(self._write_reports, {name: report for name, (_, report) in due.items()})
            self._reported.update(due)

    def _write_reports(self, reports: dict[str, dict[str, Any]]) -> None:
        for name, report in reports.items():
            self._catalog.report_replica(self.replica, name, report)

    def _say_gone(self, names: list[str]) -> None:
        for name in names:
            self._catalog.report_replica(self.replica, name, {"status": "gone", "generation": 0})


def _unforeseen(error: Exception) -> Internal:
    log.error("loading an engine failed", exc_info=error)
    return Internal(f"the engine could not be loaded: {type(error).__name__}: {error}"[:400], code="engine_broken")
