"""Whether Redis answers now."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from app.storage.catalog import Catalog


class Pulse:
    """One question at a time, so that a Redis that hangs holds one thread and not many."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="fleet-ping")
        self._ping: asyncio.Future[None] | None = None

    async def beats(self, patience_s: float) -> bool:
        """Asked now, and given up after `patience_s`."""
        if self._ping is None or self._ping.done():
            self._ping = asyncio.get_running_loop().run_in_executor(self._threads, self._catalog.ping)
            self._ping.add_done_callback(lambda ping: ping.cancelled() or ping.exception())
        done, _ = await asyncio.wait([self._ping], timeout=patience_s)
        return bool(done) and not self._ping.cancelled() and self._ping.exception() is None

    def stop(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
