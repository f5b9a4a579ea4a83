"""The queue in front of one engine. Work-conserving: what arrived while the last batch ran is the next batch.

All state is touched on the event loop only; the engine runs in threads of its own, `instances` at a time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from app.domain.tensors import check
from app.errors import BadTensor, DeadlineExceeded, Internal, Overloaded, Problem, Unavailable
from app.metrics import BACKEND, CANCELED, OTHER, REJECTED, Meter
from app.runtimes import Arrays, Engine

Outputs = dict[str, npt.NDArray[Any]]
log = logging.getLogger("enginesmith.serving")
_LONGEST_RETRY_S = 60


class _Item:
    """A request that waits. kind: requests of the same kind may share a run."""

    __slots__ = ("answer", "came", "deadline", "inputs", "kind", "rows", "waits")

    def __init__(self, inputs: Arrays, rows: int, kind: object, deadline: float | None) -> None:
        self.inputs = inputs
        self.rows = rows
        self.kind = kind
        self.deadline = deadline
        self.came = time.monotonic()
        self.waits = True
        self.answer: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()


class _Run(NamedTuple):
    """What one run of the engine gave: an answer per request, and four moments (monotonic seconds)."""

    answers: list[Outputs]
    times: tuple[float, float, float, float]


class Batcher:
    """max_batch: rows of one run. max_queue: rows that may wait. max_delay_ms: how long the first of a batch waits for
    others; 0 adds no wait."""

    def __init__(
        self,
        engine: Engine,
        meter: Meter,
        *,
        max_batch: int = 64,
        max_delay_ms: float = 0.0,
        max_queue: int = 1024,
        instances: int = 1,
    ) -> None:
        self.engine = engine
        self.meter = meter
        self.batched = engine.signature.batched
        self.max_batch = max_batch if self.batched else 1
        self.max_queue = max_queue
        self.instances = instances
        self._delay_s = max_delay_ms / 1e3
        # Where every dimension but the batch is fixed all requests are of one kind.
        self._open = any(-1 in t.shape[1:] for t in engine.signature.inputs)
        self._queue: deque[_Item] = deque()
        self._rows = 0
        self._closing = False
        self._step_comes = False
        self._timer: asyncio.TimerHandle | None = None
        self._flying: list[list[_Item]] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._threads = ThreadPoolExecutor(instances, thread_name_prefix=f"engine-{meter.model}")
        self._spare: list[tuple[object, int, dict[str, npt.NDArray[Any]]]] = []
        self._row_s = 0.0  # how long one row takes, smoothed, while the engine is busy
        self._last_end = 0.0

    @property
    def waiting_rows(self) -> int:
        return self._rows

    async def submit(self, inputs: Arrays, *, deadline: float | None = None) -> Outputs:
        """Waits for its turn and gives every output by name. deadline: on time.monotonic's clock.

        Raises BadTensor, Overloaded, DeadlineExceeded, Unavailable, and what the engine raises. Cancelling it takes the
        request out of the queue.
        """
        item = self._admit(inputs, deadline)
        try:
            if deadline is None:
                return await item.answer
            loop = asyncio.get_running_loop()
            async with asyncio.timeout_at(loop.time() + deadline - time.monotonic()):
                return await item.answer
        except TimeoutError:
            self.meter.failed[REJECTED] += 1
            raise _too_late() from None
        except asyncio.CancelledError:
            self.meter.failed[CANCELED] += 1
            raise
        finally:
            if item.waits:
                self._queue.remove(item)
                self._left(item)
                self._rest()

    def _admit(self, inputs: Arrays, deadline: float | None) -> _Item:
        try:
            rows = check(self.engine.signature, inputs)
            if self.batched and rows > self.max_batch:
                raise BadTensor(
                    f"{rows} rows in one request, and max_batch is {self.max_batch}",
                    hint=f"send at most {self.max_batch} rows at a time, or deploy with a larger max_batch",
                )
        except BadTensor:
            self.meter.failed[OTHER] += 1
            raise
        if self._closing:
            self.meter.failed[REJECTED] += 1
            raise _shutting_down()
        if deadline is not None and deadline <= time.monotonic():
            self.meter.failed[REJECTED] += 1
            raise _too_late()
        if self._rows and self._rows + rows > self.max_queue:
            self.meter.failed[REJECTED] += 1
            raise self._overloaded()
        kind = tuple(inputs[t.name].shape[1:] for t in self.engine.signature.inputs) if self._open else None
        item = _Item(inputs, rows, kind, deadline)
        self._queue.append(item)
        self._rows += rows
        self.meter.pending += 1
        self._idle.clear()
        self._wake()
        return item

    def _overloaded(self) -> Overloaded:
        wait = min(_LONGEST_RETRY_S, max(1, math.ceil(self._rows * self._row_s)))
        return Overloaded(
            f"the queue is full: {self._rows} rows wait, and it holds {self.max_queue}",
            hint=f"try again in {wait} s, or deploy with more instances or a larger max_queue",
            headers={"Retry-After": str(wait)},
        )

    def _left(self, item: _Item) -> None:
        """The item is no longer in the queue."""
        item.waits = False
        self._rows -= item.rows
        self.meter.pending -= 1

    def _rest(self) -> None:
        """Says that nothing waits and nothing runs, if so. Never in the middle of a step: who waits for it hears of it
        even if it is taken back at once, and would close the engine under a batch that is about to run."""
        if not self._queue and not self._flying:
            self._idle.set()

    def _wake(self) -> None:
        """Has `_step` run soon: after everything that arrived in this turn of the event loop has been queued."""
        if not self._step_comes:
            self._step_comes = True
            asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        """Starts as many runs as there are idle instances and batches for them."""
        self._step_comes = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while len(self._flying) < self.instances and (batch := self._take()):
            self._flying.append(batch)
            run = asyncio.get_running_loop().run_in_executor(self._threads, self._execute, batch)
            run.add_done_callback(partial(self._finish, batch))
        self._rest()

    def _take(self) -> list[_Item]:
        """The next batch: the oldest request, and those behind it that are of its kind and fit."""
        now = time.monotonic()
        if self._delay_s and self._queue and self._rows < self.max_batch and not self._closing:
            remaining = self._queue[0].came + self._delay_s - now
            if remaining > 0:
                self._timer = asyncio.get_running_loop().call_later(remaining, self._step)
                return []
        batch: list[_Item] = []
        passed: list[_Item] = []
        rows = 0
        while self._queue and rows < self.max_batch:
            item = self._queue[0]
            if item.answer.done() or (item.deadline is not None and item.deadline <= now):
                self._queue.popleft()
                self._left(item)
                if not item.answer.done():
                    item.answer.set_exception(TimeoutError())
                continue
            if batch and item.kind == batch[0].kind and rows + item.rows > self.max_batch:
                break  # it goes first next time: a large request must not starve behind small ones
            self._queue.popleft()
            if batch and item.kind != batch[0].kind:
                passed.append(item)
                continue
            batch.append(item)
            rows += item.rows
        self._queue.extendleft(reversed(passed))
        for item in batch:
            self._left(item)
        return batch

    def _execute(self, batch: list[_Item]) -> _Run:
        """In an engine's thread: gathers the rows, runs, and cuts the answers apart."""
        started = time.monotonic()
        if len(batch) == 1:
            outputs = self.engine.infer(batch[0].inputs)
            ended = time.monotonic()
            return _Run([outputs], (started, started, ended, ended))
        rows = sum(item.rows for item in batch)
        buffers = self._gather(batch, rows)
        gathered = time.monotonic()
        outputs = self.engine.infer({name: whole[:rows] for name, whole in buffers[2].items()})
        ended = time.monotonic()
        self._spare.append(buffers)
        for name, whole in outputs.items():
            if whole.shape[:1] != (rows,):
                raise Internal(f"output {name!r} has shape {list(whole.shape)} for {rows} rows", code="engine_failed")
        answers, at = [], 0
        for item in batch:
            # Copies, so that a small answer does not keep the whole batch in memory.
            answers.append({name: whole[at : at + item.rows].copy() for name, whole in outputs.items()})
            at += item.rows
        return _Run(answers, (started, gathered, ended, time.monotonic()))

    def _gather(self, batch: list[_Item], rows: int) -> tuple[object, int, dict[str, npt.NDArray[Any]]]:
        """Copies the rows once, into buffers that are kept: fresh memory for every batch costs more than the copy."""
        first = batch[0]
        try:
            kind, size, buffers = self._spare.pop()
        except IndexError:
            kind, size, buffers = None, 0, {}
        if size < rows or kind != first.kind:
            kind, size = first.kind, min(self.max_batch, 1 << (rows - 1).bit_length())
            buffers = {n: np.empty((size, *a.shape[1:]), a.dtype) for n, a in first.inputs.items()}
        for name, whole in buffers.items():
            at = 0
            for item in batch:
                whole[at : at + item.rows] = item.inputs[name]
                at += item.rows
        return kind, size, buffers

    def _finish(self, batch: list[_Item], run: asyncio.Future[_Run]) -> None:
        """Back on the event loop: hands out the answers, or the error, to exactly this batch."""
        self._flying.remove(batch)
        error = run.exception() if not run.cancelled() else _shutting_down()
        if error is None:
            self._measure(batch, run.result())
        else:
            problem = error if isinstance(error, Problem) else _broken(error)
            self.meter.failed[BACKEND] += len(batch)
            for item in batch:
                if not item.answer.done():
                    item.answer.set_exception(problem)
        if self._queue:
            self._wake()
        self._rest()

    def _measure(self, batch: list[_Item], run: _Run) -> None:
        started, gathered, ended, cut = run.times
        now = time.monotonic()
        rows, requests, meter = sum(item.rows for item in batch), len(batch), self.meter
        meter.runs += 1
        meter.rows += rows
        meter.input_us += (gathered - started) * 1e6 * requests
        meter.infer_us += (ended - gathered) * 1e6 * requests
        meter.output_us += (cut - ended) * 1e6 * requests
        for item, answer in zip(batch, run.answers, strict=True):
            meter.queue_us += (started - item.came) * 1e6
            meter.total_us += (now - item.came) * 1e6
            if not item.answer.done():
                meter.succeeded += 1
                item.answer.set_result(answer)
        took = (now - max(started, self._last_end)) / rows
        self._row_s = took if not self._row_s else 0.8 * self._row_s + 0.2 * took
        self._last_end = now

    async def close(self, grace_s: float = 30.0) -> None:
        """Takes no more requests, lets those that wait be served for `grace_s`, answers the rest, ends the engine."""
        self._closing = True
        if self._queue:
            self._wake()
        try:
            await asyncio.wait_for(self._idle.wait(), grace_s)
        except TimeoutError:
            log.warning("%s was given up with %d rows waiting", self.meter.model, self._rows)
        if self._timer is not None:
            self._timer.cancel()
        waiting = list(self._queue)
        self._queue.clear()
        for item in waiting:
            self._left(item)
        for item in (*waiting, *(item for batch in self._flying for item in batch)):
            if not item.answer.done():
                self.meter.failed[REJECTED] += 1
                item.answer.set_exception(_shutting_down())
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.engine.close)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "the deadline passed before there was an answer", hint="allow more time, or deploy with more instances"
    )


def _shutting_down() -> Unavailable:
    return Unavailable("this engine is being taken down", code="shutting_down", hint="send the request again")


def _broken(error: BaseException) -> Internal:
    log.error("an engine failed", exc_info=error)
    return Internal(f"the engine failed: {type(error).__name__}", code="engine_failed", hint="the log has more")
