"""The end that speaks HTTP: looks like a fleet to whoever asks for lanes, and sends their work to the host."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from app.domain.absent import no_deployment
from app.domain.records import Signature, Version
from app.errors import NotFound, Unavailable, from_body
from app.runtimes import Arrays
from app.serving.apart import frames
from app.serving.apart.frames import Frame, Kind
from app.serving.apart.pipe import Pipe, gone
from app.serving.batcher import Outputs, Stages
from app.serving.lane import Plan
from app.serving.served import Standing

log = logging.getLogger("enginesmith.serving")
_AGAIN_S = 0.2


class FrontLane:
    """A lane of the host. As with Lane, the version may be gone by the time a request gets there: `shutting_down`."""

    def __init__(self, pipe: _Host, told: dict[str, Any]) -> None:
        self.version = Version.model_validate(told["version"])
        self.plan = Plan(**told["plan"])
        self.max_batch: int = told["max_batch"]
        self.number: int = told["lane"]
        self._pipe = pipe

    @property
    def signature(self) -> Signature:
        return self.version.signature

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def refuse_if_full(self, nbytes: int) -> None:
        """The queue is at the host: only it knows, and says so when it is asked."""

    def refused(self, why: str) -> None:
        """Counts a request that did not get as far as the queue."""
        if self._pipe.is_open:
            self._pipe.send(frames.plain(Kind.NOTE, 0, why, self.number))

    def blame(self) -> None:
        """See Lane.blame."""
        if self._pipe.is_open:
            self._pipe.send(frames.plain(Kind.NOTE, 0, {"blame": True}, self.number))

    async def infer(
        self, inputs: Arrays, *, deadline: float | None = None, priority: int = 0, stages: Stages | None = None
    ) -> Outputs:
        """See Batcher.submit. Raises Unavailable, too, when the process of the engines ends meanwhile; TooLarge."""
        pipe = self._pipe
        id, answer = pipe.expect()
        try:
            asked = frames.ask(id, self.number, inputs, self.signature.inputs, deadline, priority, stages is not None)
            pipe.send(asked)
            frame: Frame = await answer
        except asyncio.CancelledError:
            pipe.send([frames.head(Kind.CANCEL, id, 0, 0)])
            raise
        finally:
            pipe.waiting.pop(id, None)
        outputs, times = frames.read_answer(frame, self.signature.outputs)
        if stages is not None:
            stages.came, stages.started, stages.gathered = times.came, times.started, times.gathered
            stages.ended, stages.answered, stages.rows, stages.requests = times[3:]
        return outputs


class _Place:
    """What the host says of one deployment."""

    def __init__(self, name: str, told: dict[str, Any], pipe: _Host, known: dict[int, FrontLane]) -> None:
        self.name = name
        self.percent: float = told["percent"]
        self.numbers: list[str] = told["numbers"]
        self.standing: Standing = [(number, state, why) for number, state, why in told["standing"]]
        self.asleep: bool = told["asleep"]
        self.absence: dict[str, Any] | None = told["absence"]
        self.main, self.canary = (
            None if lane is None else known.get(lane["lane"]) or FrontLane(pipe, lane)
            for lane in (told["main"], told["canary"])
        )

    @property
    def lanes(self) -> list[FrontLane]:
        return [lane for lane in (self.main, self.canary) if lane is not None]

    def pick(self, version: str | None) -> FrontLane:
        """See Place.pick."""
        if version is not None:
            for lane in self.lanes:
                if str(lane.version.version) == version:
                    return lane
            if version not in self.numbers:
                raise NotFound(
                    f"deployment {self.name!r} does not serve a version {version!r}",
                    code="version_not_served",
                    hint=f"it serves {', '.join(self.numbers)}",
                )
        elif self.canary is not None and random.random() * 100 < self.percent:
            return self.canary
        elif self.main is not None:
            return self.main
        problem = from_body(self.absence or gone().body())
        problem.headers = {"Retry-After": "1"}
        raise problem


class _Host(Pipe):
    """The host's connection, seen from here."""

    def __init__(self, front: FrontFleet) -> None:
        super().__init__()
        self._front = front
        self.ended = asyncio.Event()
        self.calls = {"metrics": front.metrics}

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._front.lost(self)
        self.ended.set()

    def take(self, frame: Frame) -> None:
        if frame.kind == Kind.ANSWER:
            if answer := self.settle(frame.id):
                answer.set_result(frame)
        elif frame.kind == Kind.TABLE:
            self._front.learn(self, frames.read_plain(frame))


class FrontFleet:
    """Has the face of Fleet that the routes use. exposition: this process' own metrics."""

    def __init__(self, path: Path, exposition: Callable[[], bytes]) -> None:
        self.decoding = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix="decode")
        self._path = path
        self._exposition = exposition
        self._places: dict[str, _Place] = {}
        self._pipe: _Host | None = None
        self.known = False
        self._missing: dict[str, str] = {}
        self._unserved: list[str] = []
        self._owed: list[str] = []
        self._learned = asyncio.Event()
        self._connecting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._connecting = asyncio.create_task(self._connect(), name="front")

    async def stop(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._pipe is not None:
            self._pipe.close()
        self.decoding.shutdown(wait=False, cancel_futures=True)

    async def _connect(self) -> None:
        """Keeps a connection to the host for as long as this process runs."""
        while True:
            try:
                _, pipe = await asyncio.get_running_loop().create_unix_connection(lambda: _Host(self), str(self._path))
            except OSError:
                await asyncio.sleep(_AGAIN_S)
                continue
            await pipe.ended.wait()
            log.warning("the process of the engines has gone; connecting again")

    def learn(self, pipe: _Host, table: dict[str, Any]) -> None:
        known = {lane.number: lane for place in self._places.values() for lane in place.lanes}
        if pipe is not self._pipe:
            known = {}
        self._pipe = pipe
        self.known, self._missing = table["known"], table["missing"]
        self._unserved, self._owed = table["unserved"], table["owed"]
        self._places = {name: _Place(name, told, pipe, known) for name, told in table["places"].items()}
        learned, self._learned = self._learned, asyncio.Event()
        learned.set()

    def lost(self, pipe: _Host) -> None:
        if pipe is self._pipe:
            self._pipe, self._places, self.known = None, {}, False

    # As Fleet's -----------------------------------------------------------------------------------------------------

    def lane(self, name: str, version: str | None = None) -> FrontLane:
        """See Fleet.lane. Raises Unavailable, too, while the process of the engines is not there."""
        place = self._places.get(name)
        if place is not None:
            return place.pick(version)
        if self._pipe is None:
            raise gone()
        if not self.known:
            raise Unavailable("the deployments are not known yet: Redis does not answer", headers={"Retry-After": "2"})
        raise no_deployment(name)

    async def find(
        self, name: str, version: str | None = None, *, deadline: float | None = None, patience_s: float = 1.0
    ) -> FrontLane:
        """See Fleet.find. A host that is being started is waited for, too."""
        place = self._places.get(name)
        if place is not None and place.main is not None:
            return place.pick(version)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self._pipe is None:
                    await self._learned.wait()
        await self._ask("find", name, version, deadline, patience_s)
        return self.lane(name, version)

    def served(self, name: str) -> list[str]:
        place = self._places.get(name)
        return [] if place is None else place.numbers

    def main_beside(self, name: str, lane: object) -> FrontLane | None:
        """See Fleet.main_beside."""
        place = self._places.get(name)
        return place.main if place is not None and lane is place.canary and lane is not place.main else None

    def standing(self, name: str) -> Standing:
        """See Fleet.standing."""
        place = self._places.get(name)
        return [] if place is None else place.standing

    def mirror(self, name: str, lane: object, inputs: Arrays, outputs: Outputs) -> None:
        """Nothing: the host tells the shadow."""

    def nudge(self) -> None:
        if self._pipe is not None:
            self._pipe.send(frames.plain(Kind.NOTE, 0, "nudge"))

    async def settled(self) -> None:
        with contextlib.suppress(Unavailable):
            await self._ask("settled")

    def missing(self) -> dict[str, str]:
        return {"engines": "their process is not there"} if self._pipe is None else self._missing

    def unserved(self) -> list[str]:
        return ["engines"] if self._pipe is None else self._unserved

    def owed(self) -> list[str]:
        """See Fleet.owed."""
        return ["engines"] if self._pipe is None else self._owed

    def names(self) -> list[str]:
        return sorted(self._places)

    async def redis_answers(self, patience_s: float = 1.0) -> bool:
        with contextlib.suppress(Unavailable):
            return bool(await self._ask("redis_answers", patience_s))
        return True  # it is the engines that do not answer: `missing` says so

    async def statistics(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._ask("statistics")
        return found

    async def metrics(self) -> str:
        """The metrics of this process alone."""
        return self._exposition().decode()

    async def scrape(self) -> str:
        """Those of every front added up, and the engines'; of this front alone while there are no engines."""
        own = self._exposition().decode()
        if self._pipe is None:
            return own
        found: str = await self._ask("exposition", own)
        return found

    async def _ask(self, name: str, *arguments: Any) -> Any:
        if self._pipe is None:
            raise gone()
        return await self._pipe.call(name, *arguments)
