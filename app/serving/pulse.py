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
        ping = self._ping  # of its own: by the time this one has ended somebody else may have begun the next
        if ping is None or ping.done():
            self._ping = ping = asyncio.get_running_loop().run_in_executor(self._threads, self._catalog.ping)
            ping.add_done_callback(lambda ping: ping.cancelled() or ping.exception())
        done, _ = await asyncio.wait([ping], timeout=patience_s)
        return bool(done) and not ping.cancelled() and ping.exception() is None

    def stop(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
