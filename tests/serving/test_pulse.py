"""Probes that overlap share one question to Redis, and each gets an answer."""

from __future__ import annotations

import asyncio
import threading

from app.errors import Unavailable
from app.serving.pulse import Pulse
from app.storage.catalog import Catalog

from .conftest import PATIENCE_S, until


class Slow(Catalog):
    """Answers when the test lets it."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.pings = 0
        self.is_gone = False

    def ping(self) -> None:
        self.pings += 1
        assert self.gate.acquire(timeout=PATIENCE_S)
        if self.is_gone:
            raise Unavailable("gone")


async def test_a_probe_hears_its_own_answer_though_another_has_begun_the_next() -> None:
    catalog = Slow()
    pulse = Pulse(catalog)
    try:
        assert not await pulse.beats(0.0)
        asked, later = pulse._ping, []
        assert asked is not None
        # Between the answer and the moment at which who waited for it goes on, somebody else asks.
        asked.add_done_callback(lambda _: later.append(asyncio.create_task(pulse.beats(PATIENCE_S))))
        first = asyncio.create_task(pulse.beats(PATIENCE_S))
        await asyncio.sleep(0)
        catalog.gate.release()
        assert await first
        await until(lambda: catalog.pings == 2)
        catalog.is_gone = True
        catalog.gate.release()
        assert await later[0] is False
    finally:
        catalog.gate.release(100)
        pulse.stop()


async def test_many_at_once_ask_one_question() -> None:
    catalog = Slow()
    pulse = Pulse(catalog)
    try:
        probes = [asyncio.create_task(pulse.beats(PATIENCE_S)) for _ in range(50)]
        await asyncio.sleep(0)
        catalog.gate.release()
        assert all(await asyncio.gather(*probes))
        assert catalog.pings == 1
    finally:
        catalog.gate.release(100)
        pulse.stop()
