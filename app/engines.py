"""The process of the engines, where several others speak HTTP: a fleet, and the host that fronts reach it through."""

from __future__ import annotations

import asyncio
import signal

import uvloop

from app.interpreter import settle
from app.parts import looked_after, opened
from app.serving.apart.host import Host
from app.serving.fleet import Fleet
from app.settings import Settings
from app.thrift import keep_thrifty


def run(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT."""
    uvloop.run(_run(settings))


async def _run(settings: Settings) -> None:
    assert settings.engines_socket is not None
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    async with opened(settings, "engines") as parts, looked_after(parts):
        fleet = Fleet(settings, parts.catalog, parts.artifacts, parts.queue)
        host = Host(fleet)
        await fleet.start()
        try:
            await host.start(settings.engines_socket)
            settle()
            thrifty = asyncio.create_task(keep_thrifty())
            await ending.wait()
            thrifty.cancel()
        finally:
            await fleet.stop()  # answers whoever waits, through the host
            await host.stop()
