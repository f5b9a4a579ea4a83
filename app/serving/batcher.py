"""The queue in front of one engine. Work-conserving: what arrived while the last batch ran is the next batch.

All state is touched on the event loop only; each instance of the engine has a thread of its own (crew.py, runner.py).
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Callable, Collection, Iterable

from app.domain.tensors import checker
from app.errors import TAKEN_DOWN, BadTensor, Problem
from app.metrics import BACKEND, CANCELED, OTHER, REJECTED, Meter
from app.runtimes import Arrays, Engine
from app.serving.crew import Crew
from app.serving.pace import Pace
from app.serving.refusals import failed, overloaded, taken_down, too_late
from app.serving.runner import Ran
from app.serving.waiting import Item, Outputs, Stages, Waiting, level_of

__all__ = ["RUN_TIMEOUT_S", "Batcher", "Outputs", "Stages"]
log = logging.getLogger("enginesmith.serving")
RUN_TIMEOUT_S = 30.0
_MAX_QUEUE_BYTES = 256 << 20


class Batcher:
    """max_batch: rows of one run. max_queue, max_queue_bytes: what may wait, in rows and in bytes. max_delay_ms: how
    long the first of a batch waits for others; 0 adds no wait. run_timeout_s, reopen: see Crew."""

    def __init__(
        self,
        engine: Engine,
        meter: Meter,
        *,
        max_batch: int = 64,
        max_delay_ms: float = 0.0,
        max_queue: int = 1024,
        max_queue_bytes: int = _MAX_QUEUE_BYTES,
        instances: int = 1,
        run_timeout_s: float = RUN_TIMEOUT_S,
        reopen: Callable[[], Engine] | None = None,
    ) -> None:
        signature = engine.signature
        self.meter = meter
        self.batched = signature.batched
        self.max_batch = max_batch if self.batched else 1
        self.max_queue = max_queue
        self.max_queue_bytes = max_queue_bytes
        self.instances = instances
        self.pace = Pace()
        self._delay_s = max_delay_ms / 1e3
        self._check = checker(signature)
        self._names = [t.name for t in signature.inputs]
        # Where every dimension but the batch is fixed all requests are of one kind.
        self._open = self.batched and any(-1 in t.shape[1:] for t in signature.inputs)
        self._loop = asyncio.get_running_loop()
        self._waiting = Waiting()
        self._drained: asyncio.Event | None = None  # made by close()
        self._step_comes = False
        self._alone = False  # whether the last run was for a single request
        self._delay: asyncio.TimerHandle | None = None
        self._crew = Crew(
            engine,
            meter.model,
            instances=instances,
            max_batch=self.max_batch,
            run_timeout_s=run_timeout_s,
            reopen=reopen,
            heard=self._finish,
            changed=self._recover,
        )

    @property
    def engine(self) -> Engine:
        return self._crew.engine

    @property
    def waiting_rows(self) -> int:
        return self._waiting.rows

    @property
    def running(self) -> int:
        """Runs that are on their way."""
        return len(self._crew.flying)

    async def submit(
        self, inputs: Arrays, *, deadline: float | None = None, priority: int = 0, stages: Stages | None = None
    ) -> Outputs:
        """Waits for its turn and gives every output by name. deadline: on time.monotonic's clock. priority: 1 goes
        first, 0 is the usual level (5). stages: filled in when the answer is there.

        Raises BadTensor, Overloaded, DeadlineExceeded, Unavailable, and what the engine raises. Cancelling it takes the
        request out of the queue.
        """
        item = self._admit(inputs, deadline, priority, stages)
        try:
            return await item.answer
        except asyncio.CancelledError:
            self.meter.failed[CANCELED] += 1
            if item.waits:
                self._take_out(item)
            raise
        finally:
            if item.timer is not None:
                item.timer.cancel()

    def _admit(self, inputs: Arrays, deadline: float | None, priority: int, stages: Stages | None) -> Item:
        meter, waiting = self.meter, self._waiting
        try:
            rows = self._check(inputs)
            if rows > self.max_batch:
                raise BadTensor(
                    f"{rows} rows in one request, and max_batch is {self.max_batch}",
                    hint=f"send at most {self.max_batch} rows at a time, or deploy with a larger max_batch",
                )
        except BadTensor:
            meter.refuse(OTHER, "bad_tensor")
            raise
        if self._drained is not None:
            meter.refuse(REJECTED, TAKEN_DOWN)
            raise taken_down()
        if self._crew.broken is not None:
            meter.refuse(REJECTED, "engine_hung")
            raise copy.copy(self._crew.broken)
        nbytes = 0
        for name in self._names:
            nbytes += inputs[name].nbytes
        if self._is_full(rows, nbytes):
            meter.refuse(REJECTED, "queue_full")
            raise overloaded(self._waiting, self.max_queue, self.max_queue_bytes, self.pace)
        kind = tuple([inputs[name].shape[1:] for name in self._names]) if self._open else None
        item = Item(inputs, rows, nbytes, kind, self._loop.create_future())
        if priority:
            item.level = level_of(priority)
        item.stages = stages
        if deadline is not None:
            if deadline <= item.came:
                meter.refuse(REJECTED, "deadline")
                raise too_late()
            item.deadline = deadline
            # One timer each, and only where there is a deadline: 2 µs. One timer for all of them would have to keep
            # account of those that are answered long before.
            item.timer = self._loop.call_later(deadline - item.came, self._expire, item)
        waiting.add(item)
        meter.pending += 1
        meter.pending_rows += rows
        if waiting.rows >= self.max_batch:
            self._keep_busy()
        elif not self._step_comes:
            # After everything that arrived in this turn of the event loop has been queued: it shares a run.
            self._step_comes = True
            self._loop.call_soon(self._step)
        return item

    def refuse_if_full(self, nbytes: int) -> None:
        """Before a request is even decoded: raises Overloaded where one row of so many bytes would find no room."""
        if self._is_full(1, nbytes):
            self.meter.refuse(REJECTED, "queue_full")
            raise overloaded(self._waiting, self.max_queue, self.max_queue_bytes, self.pace)

    def _is_full(self, rows: int, nbytes: int) -> bool:
        if self._has_room(rows, nbytes):
            return False
        self._keep_busy()  # an idle instance takes a batch off the queue: there may be room behind it
        return not self._has_room(rows, nbytes)

    def _has_room(self, rows: int, nbytes: int) -> bool:
        waiting = self._waiting
        return not waiting.rows or (
            waiting.rows + rows <= self.max_queue and waiting.nbytes + nbytes <= self.max_queue_bytes
        )

    def _keep_busy(self) -> None:
        """A whole batch waits: no instance shall be idle until this turn of the event loop is over, which takes a
        tenth of a second where thousands of requests have come at once."""
        self._crew.look()
        if self._crew.idle:
            self._start()

    def _take_out(self, item: Item) -> None:
        self._waiting.remove(item)
        self._left(1, item.rows)
        self._rest()

    def _left(self, requests: int, rows: int) -> None:
        self.meter.pending -= requests
        self.meter.pending_rows -= rows

    def _expire(self, item: Item) -> None:
        """Its time has come, and it is answered at once, whether it waits or its run goes on."""
        if item.waits:
            self._take_out(item)
        if not item.answer.done():
            self.meter.refuse(REJECTED, "deadline")
            item.answer.set_exception(too_late())

    def _rest(self) -> None:
        """Tells close() that nothing waits and nothing runs, if so. Never in the middle of a step."""
        if self._drained is not None and not self._waiting.requests and not self._crew.flying:
            self._drained.set()

    def _step(self) -> None:
        """Starts as many runs as there are idle instances and batches for them."""
        self._step_comes = False
        self._start(may_be_here=True)
        self._rest()

    def _start(self, *, may_be_here: bool = False) -> None:
        if self._delay is not None:
            self._delay.cancel()
            self._delay = None
        crew, waiting = self._crew, self._waiting
        while crew.idle and waiting.requests and not self._too_early():
            most = self.max_batch
            if len(crew.idle) > 1 and not self._open:
                most = min(most, self.pace.share(waiting.rows, len(crew.idle)))
            taken = waiting.take(most, self._sizes())
            batch = [item for item in taken if self._goes(item)]
            self._left(len(taken), sum([item.rows for item in taken]))
            if not batch:
                continue
            if may_be_here and self._here(batch):
                crew.run_here(batch)
            else:
                crew.start(batch)

    def _here(self, batch: list[Item]) -> bool:
        """Whether the event loop runs a batch itself. Waking the engine's thread, and being woken by it, costs one
        request more than a tiny network does (measured: 0.2 ms of 0.35): so where requests come one at a time, and only
        with an engine of which is known how long a run takes, whatever the values in it."""
        if not self._alone or len(batch) > 1 or self._waiting.requests or self._crew.flying:
            return False
        engine, rows = self._crew.engine, batch[0].rows
        return getattr(engine, "steady", False) and rows in getattr(engine, "met", ()) and self.pace.brief(rows)

    def _goes(self, item: Item) -> bool:
        """Whether it still wants an answer. While the loop was busy its timer may have come late."""
        if item.deadline is not None and item.deadline <= time.monotonic():
            self._expire(item)
        return not item.answer.done()

    def _sizes(self) -> Collection[int] | None:
        """The sizes that batches are cut back to, where the first run of another one is dear.

        Measured on a CPU: OpenVINO pays 8 to 100 ms at the first run of a size, and 0.06 ms when sizes alternate; a row
        costs the same at every size. So nothing is padded that can be divided between two runs of known sizes: the rest
        shares the next run with those that come meanwhile. (What cannot be divided the engine may pad.)
        """
        met: Collection[int] | None = getattr(self._crew.engine, "met", None)
        return met if met is not None and not self._open and len(met) < self.max_batch else None

    def _too_early(self) -> bool:
        """Whether max_delay_ms has the first of the next batch wait for others. Sets the timer, if so."""
        if not self._delay_s or self._drained is not None:
            return False
        head = self._waiting.head()
        remaining = 0.0 if head is None else head.came + self._delay_s - time.monotonic()
        if head is None or remaining <= 0 or self._waiting.rows_like(head, self.max_batch) >= self.max_batch:
            return False
        self._delay = self._loop.call_later(remaining, self._step)
        return True

    def _finish(self, batch: list[Item], found: Ran | BaseException) -> None:
        """Back on the event loop: hands out the answers, or the error, to exactly this batch."""
        if self._waiting.requests:
            self._step()  # before the answers: the engine works while they are handed out
        if isinstance(found, Ran):
            self._answer(batch, found)
        else:
            self._fail(batch, found if isinstance(found, Problem) else failed(found))
        self._rest()

    def _answer(self, batch: list[Item], ran: Ran) -> None:
        now = time.monotonic()
        requests = len(batch)
        self._alone = requests == 1
        for item, answer in zip(batch, ran.answers, strict=True):
            if (stages := item.stages) is not None:
                stages.came, stages.started, stages.gathered = item.came, ran.started, ran.gathered
                stages.ended, stages.answered, stages.rows, stages.requests = ran.ended, now, ran.rows, requests
            if not item.answer.done():
                item.answer.set_result(answer)
                self.meter.succeeded += 1
        self.meter.ran([item.came for item in batch], ran.rows, (ran.started, ran.gathered, ran.ended, ran.cut), now)
        if ran.on_gpu is not None:
            self.meter.ran_on_gpu(*ran.on_gpu)
        self.pace.ran(ran.rows, ran.started, ran.ended, now)

    def _fail(self, batch: Iterable[Item], problem: Problem) -> None:
        self.meter.hung += problem.code == "engine_hung"
        for item in batch:
            if not item.answer.done():
                self.meter.failed[BACKEND] += 1
                item.answer.set_exception(copy.copy(problem))  # each raises its own: a traceback belongs to one

    def _recover(self) -> None:
        """There are fresh instances, or none is left and nobody can be served."""
        if self._crew.broken is not None:
            waiting = self._waiting.clear()
            self._left(len(waiting), sum(item.rows for item in waiting))
            self._refuse(waiting, self._crew.broken)
        self._step()

    def _refuse(self, items: Iterable[Item], problem: Problem) -> None:
        for item in items:
            if not item.answer.done():
                self.meter.refuse(REJECTED, problem.code)
                item.answer.set_exception(copy.copy(problem))

    async def close(self, grace_s: float = 30.0) -> None:
        """Takes no more requests, lets those that wait be served for `grace_s`, answers the rest, ends the engine."""
        if self._drained is None:
            self._drained = asyncio.Event()
        if self._waiting.requests or self._step_comes:
            self._step()
        self._rest()
        try:
            await asyncio.wait_for(self._drained.wait(), grace_s)
        except TimeoutError:
            log.warning("%s was given up with %d rows waiting", self.meter.model, self._waiting.rows)
        if self._delay is not None:
            self._delay.cancel()
        waiting = self._waiting.clear()
        self._left(len(waiting), sum(item.rows for item in waiting))
        self._refuse(waiting, taken_down())
        for runner in self._crew.flying:
            self._refuse(runner.batch or (), taken_down())
        await self._crew.close()
