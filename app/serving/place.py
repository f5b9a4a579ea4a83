"""What one replica has under one deployment's name: what is wanted, what was tried, and the lanes that answer."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, NamedTuple

from app.domain.deployments import Deployment, LastReady
from app.errors import NotFound, Unavailable
from app.serving.guard import Verdict
from app.serving.lane import Lane
from app.serving.served import Standing
from app.serving.shadow import Mirror

_LEAST_KEPT_S, _MOST_KEPT_S = 0.1, 10.0


class Lanes(NamedTuple):
    """The lanes of one deployment; main and canary may be the same."""

    main: Lane
    canary: Lane | None = None
    shadow: Lane | None = None


class Place:
    """wanted: what should be. tried: what was last attempted. served: what the lanes are, or were when it fell asleep.

    It sleeps when its lanes were unloaded to make room for others: nothing has failed, and a request has it loaded.
    """

    def __init__(self, wanted: Deployment) -> None:
        self.name = wanted.name
        self.wanted: Deployment | None = wanted
        self.tried: Deployment | None = None
        self.served: Deployment | None = None
        self.main: Lane | None = None
        self.canary: Lane | None = None
        self.mirror: Mirror | None = None
        self.percent = 0.0
        self.status = "loading"
        self.error: dict[str, Any] | None = None
        self.failures = 0
        self.retry_at: float | None = None
        self.work: asyncio.Task[None] | None = None
        self.last: LastReady | None = None  # what Redis says was ready last
        self.from_start = False  # was wanted when this replica began
        self.compared: tuple[str, str] | None = None  # the versions that the shadow's figures are of
        self.verdict: Verdict | None = None  # the canary broke a bound, and Redis is to be told
        self.asleep = False
        self.can_sleep_at_once = False  # found at start-up: loaded only where there is room
        self.waiting = 0  # requests that wait for it to be loaded
        self.used = self.kept_until = time.monotonic()
        self.took_s = 0.0  # to load it, the last time
        self.loads = 0
        self._runs = 0

    @property
    def lanes(self) -> list[Lane]:
        """Each once, whatever its roles."""
        held = (self.main, self.canary, self.mirror.lane if self.mirror else None)
        return list(dict.fromkeys(lane for lane in held if lane is not None))

    @property
    def is_busy(self) -> bool:
        return self.work is not None and not self.work.done()

    @property
    def state(self) -> str:
        """loading, building, ready, failed; asleep for one that is as wanted, but for being unloaded."""
        return "asleep" if self.asleep and self.status == "ready" else self.status

    def due(self) -> bool:
        """Whether something is to be loaded that is not being loaded already."""
        if self.is_busy:
            return False
        return self.wanted != self.tried or (self.retry_at is not None and time.monotonic() >= self.retry_at)

    def take(self, lanes: Lanes, mirror: Mirror | None, to: Deployment, took_s: float) -> list[Lane]:
        """From now on these answer; gives those that no longer do. took_s: what loading took, which is not to be spent
        again at once for the sake of another deployment."""
        old, former = self.lanes, self.mirror
        self.main, self.canary, self.mirror = lanes.main, lanes.canary, mirror
        self.verdict = self.verdict if to == self.served else None
        # A canary that broke a bound gets nothing more, even before Redis knows of it.
        self.percent = to.canary.percent if to.canary and self.verdict is None else 0.0
        self.served, self.asleep = to, False
        if former is not None and former is not mirror:
            former.stop()
        self.took_s, self.loads = took_s, self.loads + 1
        self.used = time.monotonic()
        self.kept_until = self.used + min(_MOST_KEPT_S, max(_LEAST_KEPT_S, took_s))
        return [lane for lane in old if lane not in self.lanes]

    def give_up(self, *, asleep: bool = False) -> list[Lane]:
        """From now on nothing answers; gives the lanes that did."""
        lanes = self.lanes
        if self.mirror is not None:
            self.mirror.stop()
        self.main = self.canary = self.mirror = None
        self.asleep = asleep
        return lanes

    def notice_use(self) -> None:
        """Other processes reach the lanes without `pick`: their use shows in the counters."""
        runs = sum(lane.batcher.meter.runs for lane in (self.main, self.canary) if lane is not None)
        if runs > self._runs:
            self.used = time.monotonic()
        self._runs = runs

    def report(self) -> dict[str, Any]:
        at = self.tried or self.wanted
        assert at is not None
        return {
            "generation": at.generation,
            "since": at.created_at,
            "status": self.state,
            "model": at.model,
            "serving": self.main.version.ref if self.main else None,
            "versions": self.needed(),
            "error": None if self.status == "building" else self.error,
            "building": self.error["detail"] if self.status == "building" and self.error else None,
        }

    def needed(self) -> list[str]:
        """The versions that are loaded here, whether they are still wanted or not, or are to be loaded at a request."""
        asleep = self.served.refs if self.asleep and self.served is not None else ()
        return sorted({*(lane.plan.ref for lane in self.lanes), *asleep})

    def fallback(self, to: Deployment) -> str | None:
        """The version that goes on where what is wanted has never been ready."""
        if self.last is not None and self.last.model == to.model:
            return None
        return to.previous_of(to.model, self.last)

    def news(self) -> LastReady | None:
        """What Redis is to know of the version that is ready here, where it does not know it yet."""
        last, served = self.last, self.served
        if self.main is None or served is None:
            return None
        made, generation, model = served.created_at, served.generation, served.model
        if last is not None and last.made == made and (last.model == model or last.generation >= generation):
            return None
        return LastReady(made=made, generation=generation, model=model)

    @property
    def is_owed(self) -> bool:
        """Nothing answers, and something has answered here, or was to when this replica began. What is made anew and
        has never answered is not missed: it must not take a replica out of service that serves all the others."""
        if self.main is not None or self.asleep:
            return False
        return bool(self.loads) or (self.from_start and (self.status != "failed" or self.last is not None))

    def standing(self) -> Standing:
        """Of each version served or wanted: its number, Triton's word for its state, and why it is not ready."""
        served = self.numbers() if self.main is not None or self.asleep else []
        told = {number: (number, "READY", "") for number in served}
        why = str((self.error or {}).get("detail", ""))
        state = "UNAVAILABLE" if self.status == "failed" else "LOADING"
        of = self.wanted
        for ref in (of.model, *([of.canary.model] if of.canary else [])) if of is not None else ():
            number = ref.rpartition("@")[2]
            told.setdefault(number, (number, state, why))
        return list(told.values())

    def figures(self) -> dict[str, Any]:
        """How canary and shadow do; changes all the time."""
        found: dict[str, Any] = {}
        if self.canary is not None and self.canary.watch is not None:
            found["canary"] = {"model": self.canary.plan.ref} | self.canary.watch.figures()
        if self.mirror is not None:
            found["shadow"] = {"model": self.mirror.lane.plan.ref} | self.mirror.tally.figures()
        return found

    def pick(self, version: str | None = None) -> Lane:
        """The lane for the next request. version: a number, which must be one that is served.

        Raises NotFound; Unavailable while there is none, with the reason.
        """
        self.used = time.monotonic()
        if version is not None:
            return self._numbered(version)
        if self.canary is not None and random.random() * 100 < self.percent:
            return self.canary
        if self.main is not None:
            return self.main
        raise self.absence()

    def _numbered(self, version: str) -> Lane:
        for lane in (self.main, self.canary):
            if lane is not None and str(lane.version.version) == version:
                return lane
        if self.main is None and version in self.numbers():
            raise self.absence()
        raise self.no_version(version)

    def refs(self) -> list[str]:
        """The versions served under this name, the main one first; of two with one number, that one alone."""
        if self.main is not None:
            found = [lane.version.ref for lane in (self.main, self.canary) if lane is not None]
        else:
            of = self.served or self.tried or self.wanted
            assert of is not None
            found = [of.model, *([of.canary.model] if of.canary else [])]
        by_number: dict[str, str] = {}
        for ref in found:
            by_number.setdefault(ref.rpartition("@")[2], ref)
        return list(by_number.values())

    def numbers(self) -> list[str]:
        """Their numbers."""
        return [ref.rpartition("@")[2] for ref in self.refs()]

    def no_version(self, version: str) -> NotFound:
        return NotFound(
            f"deployment {self.name!r} does not serve a version {version!r}",
            code="version_not_served",
            hint=f"it serves {', '.join(self.numbers())}",
        )

    def absence(self) -> Unavailable:
        """Why there is no lane."""
        if self.status == "failed" and self.error is not None:
            return Unavailable(
                f"deployment {self.name!r} could not be loaded: {self.error['detail']}",
                code="deployment_failed",
                hint=self.error.get("hint"),
                headers={"Retry-After": "10"},
            )
        if self.status == "building" and self.error is not None:
            return Unavailable(
                f"deployment {self.name!r} is not there yet: {self.error['detail']}",
                code="deployment_building",
                hint=self.error.get("hint"),
                headers={"Retry-After": "10"},
            )
        return Unavailable(
            f"deployment {self.name!r} is loading",
            code="deployment_loading",
            hint="try again in a moment",
            headers={"Retry-After": "1"},
        )
