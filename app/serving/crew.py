"""The instances of one engine: who is idle, who runs too long, and what replaces an engine that hangs or is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from app.errors import DeadlineExceeded, EngineLost, Problem, Unavailable
from app.runtimes import Engine
from app.serving.aside import in_thread
from app.serving.runner import Ran, Runner
from app.serving.waiting import Item

log = logging.getLogger("enginesmith.serving")
_ABANDONED_MOST = 8  # threads in which an engine hangs; no further engine is loaded for them to fill
_REOPEN_S = (1.0, 2.0, 5.0, 10.0, 30.0)
_CLOSE_S = 10.0


class Crew:
    """All of it on the event loop.

    heard: called after every run with its batch, and with what it gave or raised; a run that hangs raises to it.
    changed: called when an instance has become idle otherwise, or none is left (then `broken` says why).
    run_timeout_s: a run that takes longer hangs. It is ended where the engine can do that, and its thread abandoned; a
    fresh engine from `reopen` (called in a thread) takes the place of the whole engine, whose other instances end
    their runs first. A run that raises EngineLost has lost its device: the same happens, and nothing more is given to
    the old engine.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        *,
        instances: int,
        max_batch: int,
        run_timeout_s: float,
        reopen: Callable[[], Engine] | None,
        heard: Callable[[list[Item], Ran | BaseException], None],
        changed: Callable[[], None],
    ) -> None:
        self.engine = engine
        self.idle: list[Runner] = []
        self.flying: set[Runner] = set()
        self.broken: Problem | None = None
        self._name = name
        self._instances = instances
        self._max_batch = max_batch
        self._run_timeout_s = run_timeout_s
        self._reopen = reopen
        self._heard = heard
        self._changed = changed
        self._abandoned: list[Runner] = []
        self._lost: Engine | None = None
        self._replacing: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Future[None]] = set()
        self._watch: asyncio.TimerHandle | None = None
        self._staff()

    def start(self, batch: list[Item]) -> None:
        """Has the idle instance that was used last run a batch: its memory is still in the caches."""
        runner = self.idle.pop()
        self.flying.add(runner)
        runner.start(batch)
        if self._watch is None:
            # One look for many runs: it costs a run nothing, and finds one that hangs after once to twice the time.
            self._watch = asyncio.get_running_loop().call_later(self._run_timeout_s, self._look)

    def look(self) -> None:
        """Hears of the runs that have ended, before the event loop comes to them."""
        for runner in list(self.flying):
            runner.look()

    def run_here(self, batch: list[Item]) -> None:
        """Has an idle instance run a batch on the event loop, which waits for it: for runs sure to be brief."""
        self._heard(batch, self.idle[-1].run_here(batch))

    async def close(self) -> None:
        """Ends the threads and the engine; a run that is on its way ends unheard."""
        if self._watch is not None:
            self._watch.cancel()
        if self._replacing is not None:
            self._replacing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._replacing
        for runner in (*self.idle, *self.flying):
            runner.stop()
        for runner in self.flying:
            _interrupt(runner)
        self.idle.clear()
        self.flying.clear()
        self._end(self.engine)
        await asyncio.wait(self._closing, timeout=_CLOSE_S)

    def _staff(self) -> None:
        self.idle += [
            Runner(self.engine, self._max_batch, f"engine-{self._name}", self._done) for _ in range(self._instances)
        ]

    def _done(self, runner: Runner, batch: list[Item], found: Ran | BaseException) -> None:
        self.flying.discard(runner)
        if isinstance(found, EngineLost) and runner.engine is self.engine:
            self._lose(found)
        if runner.engine is self.engine and runner.engine is not self._lost:
            self.idle.append(runner)
        else:
            runner.stop()
            self._end_unused(runner.engine)
        self._heard(batch, found)

    def _lose(self, why: EngineLost) -> None:
        """Whoever waits goes on waiting, for the fresh engine."""
        if self._lost is self.engine:
            return
        log.error("%s: its engine is lost, and is replaced: %s", self._name, why.detail)
        self._lost = self.engine
        for runner in self.idle:
            runner.stop()
        self.idle.clear()
        if self._replacing is None:
            self._replacing = asyncio.create_task(self._replace(), name=f"replace {self._name}")

    def _look(self) -> None:
        """Finds the runs that take too long, and looks again when the next one could."""
        self._watch = None
        limit = time.monotonic() - self._run_timeout_s
        for runner in [runner for runner in self.flying if runner.began <= limit]:
            self._abandon(runner)
        if self.flying:
            until = min(runner.began for runner in self.flying) - limit
            self._watch = asyncio.get_running_loop().call_later(until, self._look)

    def _abandon(self, runner: Runner) -> None:
        batch = runner.batch
        assert batch is not None
        log.error("%s: a run of %d requests hangs; its engine is replaced", self._name, len(batch))
        runner.stop()
        _interrupt(runner)
        self.flying.discard(runner)
        self._abandoned.append(runner)
        if runner.engine is self.engine and self._replacing is None:
            self._replacing = asyncio.create_task(self._replace(), name=f"replace {self._name}")
        self._heard(batch, _hung(self._run_timeout_s))

    async def _replace(self) -> None:
        """Loads a fresh engine, however often that fails, and puts it in the place of the one that hangs."""
        try:
            for failures in range(1_000_000):
                self._abandoned = [runner for runner in self._abandoned if runner.thread.is_alive()]
                for runner in self._abandoned:  # again: it may have been about to begin
                    _interrupt(runner)
                problem = await self._try()
                if problem is None:
                    break
                if not self.idle and not self.flying:
                    self.broken = problem
                    self._changed()
                await asyncio.sleep(_REOPEN_S[min(failures, len(_REOPEN_S) - 1)])
        finally:
            self._replacing = None

    async def _try(self) -> Problem | None:
        """Why there is no fresh engine; or None, and it is in its place."""
        if self._reopen is None:
            return _unusable("it cannot be loaded again here")
        if len(self._abandoned) >= _ABANDONED_MOST:
            return _unusable(f"{len(self._abandoned)} of its runs have not ended")
        opening = in_thread(self._reopen, f"reopen-{self._name}")
        try:
            fresh = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._discard)
            raise
        except Exception as error:
            log.error("%s: no engine could be loaded in the place of the old one", self._name, exc_info=error)
            return _unusable(error.detail if isinstance(error, Problem) else type(error).__name__)
        old, self.engine, self.broken, self._lost = self.engine, fresh, None, None
        for runner in self.idle:
            runner.stop()
        self.idle.clear()
        self._staff()
        self._end_unused(old)
        log.warning("%s: a fresh engine is in the place of the old one", self._name)
        self._changed()
        return None

    def _discard(self, opening: asyncio.Future[Engine]) -> None:
        """It came too late: there is nothing any more for it to replace."""
        if not opening.cancelled() and opening.exception() is None:
            self._end(opening.result())

    def _end_unused(self, engine: Engine) -> None:
        if not any(runner.engine is engine for runner in self.flying):
            self._end(engine)

    def _end(self, engine: Engine) -> None:
        closing = in_thread(engine.close, f"close-{self._name}")
        self._closing.add(closing)
        closing.add_done_callback(self._ended)

    def _ended(self, closing: asyncio.Future[None]) -> None:
        self._closing.discard(closing)
        if not closing.cancelled() and (error := closing.exception()) is not None:
            log.error("%s: closing an engine failed", self._name, exc_info=error)


def _interrupt(runner: Runner) -> None:
    """Ends the run that it is in, where the engine can do that."""
    interrupt = getattr(runner.engine, "interrupt", None)
    if interrupt is not None:
        interrupt(runner.thread.ident)


def _hung(seconds: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the engine has not answered within {seconds:g} s, and is being replaced",
        code="engine_hung",
        hint="send the request again in a moment; if runs of this model take that long, raise run_timeout_s",
    )


def _unusable(why: str) -> Unavailable:
    return Unavailable(
        f"the engine hangs or is lost, and there is no other yet: {why}",
        code="engine_hung",
        hint="try again in a few seconds; the service's log says more",
        headers={"Retry-After": "5"},
    )
