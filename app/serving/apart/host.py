"""The end that has the engines: answers fronts from the lanes of a fleet, and tells them which lanes there are."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from pathlib import Path
from typing import Any

from app.errors import Unavailable
from app.observe import exposition
from app.serving.apart import frames, totals
from app.serving.apart.frames import Frame, Kind, Times
from app.serving.apart.pipe import Pipe, failure
from app.serving.batcher import Stages
from app.serving.fleet import Fleet
from app.serving.lane import Lane
from app.serving.refusals import taken_down

_LOOK_S = 0.5
_FRONT_S = 2.0  # how long a front is waited for when metrics are asked of all


class Host:
    """One per process of engines. The fleet calls `changed` before lanes that are no longer wanted go down, so that
    every front hears of the new ones before it hears that an old one has ended."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.fronts: set[_Front] = set()
        self.past = totals.Totals()  # what fronts that have ended had counted
        self.lanes: dict[int, tuple[str, Lane]] = {}  # by number: the deployment's name, and the lane
        self._numbers: dict[Lane, int] = {}
        self._count = itertools.cycle(range(1, frames.MOST_LANES + 1))
        self._server: asyncio.AbstractServer | None = None
        self._watch: asyncio.Task[None] | None = None
        self._last: dict[str, Any] = {}
        self._described: dict[int, dict[str, Any]] = {}  # by number: what a lane is, which never changes

    async def start(self, path: Path) -> None:
        """Listens. A socket that an earlier process left is taken over."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self.fleet.listeners.append(self.changed)
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: _Front(self), str(path))
        path.chmod(0o600)

        self._watch = asyncio.create_task(self._look(), name="host")

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        if self.changed in self.fleet.listeners:
            self.fleet.listeners.remove(self.changed)
        for front in list(self.fronts):
            front.close()

    def changed(self) -> None:
        """Tells every front which lanes answer now."""
        self._last = self.table()
        for front in self.fronts:
            front.send(frames.plain(Kind.TABLE, 0, self._last))

    async def _look(self) -> None:
        """What is loading or missing changes without a change of lanes."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if self.table() != self._last:
                self.changed()

    def table(self) -> dict[str, Any]:
        """Each deployment with its lanes, as `app.serving.apart.front` reads it."""
        places = self.fleet.places()
        current = {lane: place.name for place in places for lane in (place.main, place.canary) if lane is not None}
        for lane in [lane for lane in self._numbers if lane not in current]:
            number = self._numbers.pop(lane)
            del self.lanes[number], self._described[number]
        for lane, name in current.items():
            if lane not in self._numbers:
                # A number is used again only after all the others.
                self._numbers[lane] = number = next(n for n in self._count if n not in self.lanes)
                self.lanes[number] = name, lane
                self._described[number] = {
                    "lane": number,
                    "version": lane.version.model_dump(mode="json"),
                    "plan": lane.plan._asdict(),
                    "max_batch": lane.max_batch,
                }
        return {
            "known": self.fleet.known,
            "missing": self.fleet.missing(),
            "unserved": self.fleet.unserved(),
            "owed": self.fleet.owed(),
            "places": {
                place.name: {
                    "asleep": place.asleep,
                    "numbers": place.numbers(),
                    "standing": [list(told) for told in place.standing()],
                    "percent": place.percent,
                    "absence": None if place.main is not None else place.absence().body(),
                    "main": self._told(place.main),
                    "canary": self._told(place.canary),
                }
                for place in places
            },
        }

    def _told(self, lane: Lane | None) -> dict[str, Any] | None:
        return None if lane is None else self._described[self._numbers[lane]]

    async def exposition(self, asking: _Front, own: str) -> str:
        """The HTTP metrics and CPU time of all fronts and of this process, added up, and those of the engines."""
        others = [front for front in self.fronts if front is not asking]
        told = await asyncio.gather(*(front.metrics() for front in others))
        asking.counted = own
        return totals.add([*told, own, exposition().decode()], self.past) + self.fleet.exposition()


class _Front(Pipe):
    """A front's connection, seen from here."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self._host = host
        self._running: dict[int, asyncio.Task[None]] = {}
        self.counted = ""  # its metrics when they were last asked for
        fleet = host.fleet
        self.calls = {
            "find": self._find,
            "redis_answers": fleet.redis_answers,
            "settled": self._settled,
            "exposition": lambda own: host.exposition(self, own),
            "statistics": fleet.statistics,
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._host.fronts.add(self)
        self.send(frames.plain(Kind.TABLE, 0, self._host.table()))

    def connection_lost(self, error: Exception | None) -> None:
        """Its requests leave the queues with it."""
        super().connection_lost(error)
        self._host.fronts.discard(self)
        self._host.past.keep(self.counted)

    def take(self, frame: Frame) -> None:
        if frame.kind == Kind.INFER:
            self._running[frame.id] = task = self.spawn(self._infer(frame))
            task.add_done_callback(lambda _: self._running.pop(frame.id, None))
        elif frame.kind == Kind.CANCEL:
            if running := self._running.get(frame.id):
                running.cancel()
        elif frame.kind == Kind.NOTE:
            reason = frames.read_plain(frame)
            if reason == "nudge":
                self._host.fleet.nudge()
            elif isinstance(reason, dict):
                if found := self._host.lanes.get(frame.lane):
                    found[1].blame()
            elif found := self._host.lanes.get(frame.lane):
                found[1].refused(reason)

    async def metrics(self) -> str:
        with contextlib.suppress(Unavailable):  # what it said the last time stands
            self.counted = await self.call("metrics", patience_s=_FRONT_S)
        return self.counted

    async def _infer(self, frame: Frame) -> None:
        try:
            found = self._host.lanes.get(frame.lane)
            if found is None:
                raise taken_down()
            name, lane = found
            signature = lane.signature
            asked = frames.read_ask(frame, signature.inputs)
            stages = Stages() if asked.stages else None
            with lane:
                outputs = await lane.infer(
                    asked.inputs, deadline=asked.deadline, priority=asked.priority, stages=stages
                )
            times = None
            if stages is not None:
                s = stages
                times = Times(s.came, s.started, s.gathered, s.ended, s.answered, s.rows, s.requests)
            self.send(frames.answer(frame.id, outputs, signature.outputs, times))
            self._host.fleet.mirror(name, lane, asked.inputs, outputs)
        except Exception as error:
            self.send(failure(frame.id, error))

    async def _settled(self) -> None:
        """The table that shows it precedes the answer."""
        await self._host.fleet.settled()
        self.send(frames.plain(Kind.TABLE, 0, self._host.table()))

    async def _find(self, name: str, version: str | None, deadline: float | None, patience_s: float) -> None:
        """Loads what sleeps and waits for what is loading; the table that shows it precedes the answer."""
        await self._host.fleet.find(name, version, deadline=deadline, patience_s=patience_s)
        self.send(frames.plain(Kind.TABLE, 0, self._host.table()))
