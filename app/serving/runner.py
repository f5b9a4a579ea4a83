"""A thread that runs one instance of an engine. It owns the instance's input memory, and hands back answers.

A thread of its own, fed through a SimpleQueue: there and back costs 30 µs of latency where run_in_executor's two
futures cost 56 (measured, tiny CNN, uvloop), and several times that where a sleeping core has to be woken for it.
Daemonic, because a run that hangs must not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple

from app.domain.records import Signature
from app.errors import Internal
from app.runtimes import Engine, Slot, slot_of
from app.serving.waiting import Item, Outputs


class Ran(NamedTuple):
    """What a run gave: an answer per request, the rows, and four moments (monotonic seconds). on_gpu: seconds that the
    GPU took to copy in, compute and copy out, and whether as a CUDA graph; None where there is none."""

    answers: list[Outputs]
    rows: int
    started: float
    gathered: float
    ended: float
    cut: float
    on_gpu: tuple[float, float, float, bool] | None = None


class Runner:
    """Everything but `_work` happens on the event loop. An instance's memory is used by one thread at a time.

    done: called there after every run that nobody has given up, with its batch and what it gave or raised.
    """

    def __init__(
        self,
        engine: Engine,
        max_batch: int,
        name: str,
        done: Callable[[Runner, list[Item], Ran | BaseException], None],
    ) -> None:
        self.engine = engine
        self.batch: list[Item] | None = None
        self.began = 0.0
        self._done = done
        self._max_batch = max_batch
        self._slot: Slot | None = None  # made by the first run
        self._ended: tuple[list[Item], Ran | BaseException] | None = None  # what the event loop has not come to yet
        self._loop = asyncio.get_running_loop()
        self._box: SimpleQueue[list[Item] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def start(self, batch: list[Item]) -> None:
        self.batch = batch
        self.began = time.monotonic()
        self._box.put(batch)

    def run_here(self, batch: list[Item]) -> Ran | BaseException:
        """Runs a batch on the event loop, which waits for it. Only while the thread has nothing to do."""
        return self._run(batch)

    def look(self) -> None:
        """Hears now of a run that has ended, where the event loop is long in coming to it."""
        ended = self._ended
        if ended is not None:
            self._heard(*ended)

    def stop(self) -> None:
        """Ends the thread when it is idle. A run that is on its way ends unheard."""
        self.batch = None
        self._box.put(None)

    def _work(self) -> None:
        while (batch := self._box.get()) is not None:
            found = self._run(batch)
            self._ended = (batch, found)
            try:
                self._loop.call_soon_threadsafe(self._heard, batch, found)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return
            del batch, found  # an idle thread keeps nothing alive

    def _run(self, batch: list[Item]) -> Ran | BaseException:
        try:
            if self._slot is None:
                self._slot = slot_of(self.engine, self._max_batch)
            return _run(self._slot, self.engine.signature, batch)
        except BaseException as error:  # whatever it is, somebody waits for it
            return error

    def _heard(self, batch: list[Item], found: Ran | BaseException) -> None:
        if self.batch is batch:  # else it was given up, and its requests have been answered; or `look` was sooner
            self.batch = self._ended = None
            self._done(self, batch, found)


def _run(slot: Slot, signature: Signature, batch: list[Item]) -> Ran:
    """Gathers the rows, runs, and cuts the answers apart."""
    started = time.monotonic()
    rows = sum([item.rows for item in batch])
    slot.fill([item.inputs for item in batch], rows)
    gathered = time.monotonic()
    outputs = slot.run()
    ended = time.monotonic()
    for tensor in signature.outputs:
        array = outputs.get(tensor.name)
        if array is None or (signature.batched and array.shape[:1] != (rows,)):
            told = "is missing" if array is None else f"has shape {list(array.shape)} for {rows} rows"
            raise Internal(f"the engine is broken: its output {tensor.name!r} {told}", code="engine_failed")
    # Copies, so that a small answer does not keep the whole batch in memory.
    if len(batch) == 1:
        answers = [outputs if slot.fresh else {name: array.copy() for name, array in outputs.items()}]
    else:
        answers, at = [], 0
        for item in batch:
            answers.append({name: whole[at : at + item.rows].copy() for name, whole in outputs.items()})
            at += item.rows
    return Ran(answers, rows, started, gathered, ended, time.monotonic(), getattr(slot, "on_gpu", None))
