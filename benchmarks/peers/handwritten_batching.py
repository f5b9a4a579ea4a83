"""The hand-written endpoint, with batching that conserves work: the engine's thread takes whatever has queued up."""

from __future__ import annotations

import asyncio
import queue
import threading

import numpy as np

from benchmarks.peers import MAX_BATCH, Options, Rows, options
from benchmarks.peers.engine import Engine
from benchmarks.peers.handwritten import answer, ask, serve

__all__ = ["PACKAGES", "answer", "ask", "command"]
PACKAGES: tuple[str, ...] = ()
Waiting = tuple[Rows, "asyncio.Future[Rows]"]


def command(python: str, given: Options) -> list[str]:
    return given.command(python, __name__)


class Batches:
    """A thread that runs the engine on what came while the last batch ran; rows are copied once, into its buffer."""

    def __init__(self, engine: Engine, shape: tuple[int, ...]) -> None:
        self._engine = engine
        self._buffer = np.empty((MAX_BATCH, *shape), np.float32)
        self._queue: queue.SimpleQueue[Waiting] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    async def infer(self, x: Rows) -> Rows:
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Rows] = self._loop.create_future()
        self._queue.put((x, future))
        return await future

    def _work(self) -> None:
        while True:
            batch = [self._queue.get()]
            while len(batch) < MAX_BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            for row, (x, _) in enumerate(batch):
                self._buffer[row] = x[0]
            try:
                rows: Rows | Exception = self._engine(self._buffer[: len(batch)])
            except Exception as error:
                rows = error
            self._loop.call_soon_threadsafe(_deliver, batch, rows)


def _deliver(batch: list[Waiting], rows: Rows | Exception) -> None:
    for at, (_, future) in enumerate(batch):
        if future.done():
            continue
        if isinstance(rows, Exception):
            future.set_exception(rows)
        else:
            future.set_result(rows[at : at + 1])


def main(*, tuned: bool = False) -> None:
    given = options()
    engine = Engine(given.onnx, given.threads)
    engine.warm(given.shape)
    serve(given, Batches(engine, given.shape).infer, tuned=tuned)


if __name__ == "__main__":
    main()
