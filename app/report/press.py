"""Where pages are printed: in child processes, few at a time, for a bounded time; those of the last jobs are kept."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import sys
from collections import OrderedDict
from typing import Any

import orjson

from app.processes import die_with_parent
from app.report.page import page
from app.settings import Settings

log = logging.getLogger("enginesmith.report")
AT_ONCE, MOST_WAITING = 1, 8
SECONDS = 30.0
KEPT, KEPT_BYTES = 32, 8 << 20


class Press:
    """Owned by one process of the app. What a page is made of decides which page it is: one whose job, lineage and
    recipe are as they were is not drawn again."""

    def __init__(
        self, settings: Settings, *, seconds: float = SECONDS, command: tuple[str, ...] = ("-m", "app.report")
    ):
        self._settings = settings
        self._seconds = seconds
        self._command = command
        self._free = asyncio.Semaphore(AT_ONCE)
        self._printing: dict[str, asyncio.Task[str | None]] = {}
        self._kept: OrderedDict[str, str] = OrderedDict()

    async def printed(self, given: dict[str, Any]) -> str:
        """The page. Where it cannot be drawn, and while too many wait for theirs: one with tables, which says so."""
        asked = orjson.dumps(given, default=str, option=orjson.OPT_NON_STR_KEYS)
        mark = hashlib.sha256(asked).hexdigest()
        if mark in self._kept:
            self._kept.move_to_end(mark)
            return self._kept[mark]
        task = self._printing.get(mark)
        if task is None:
            if len(self._printing) >= MOST_WAITING:
                return await self._plain(asked, "The figures are not drawn now: many reports are. Load it again later.")
            task = asyncio.create_task(self._draw(asked))
            self._printing[mark] = task
            task.add_done_callback(lambda _: self._printing.pop(mark, None))
        # Whoever goes away leaves the drawing to those who wait for the same page.
        found = await asyncio.shield(task)
        if found is None:
            return await self._plain(asked, "The figures could not be drawn; here they are as tables.")
        self._keep(mark, found)
        return found

    async def close(self) -> None:
        """Ends what is being drawn."""
        tasks = list(self._printing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _plain(self, asked: bytes, excuse: str) -> str:
        return await asyncio.to_thread(lambda: page(orjson.loads(asked), excuse=excuse))

    async def _draw(self, asked: bytes) -> str | None:
        async with self._free:
            try:
                async with asyncio.timeout(self._seconds):
                    return await self._drawn(asked)
            except TimeoutError:
                log.warning("a report was not drawn within %g s", self._seconds)
            except OSError as error:
                log.warning("a report could not be drawn: %s", error)
            return None

    async def _drawn(self, asked: bytes) -> str | None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=await asyncio.to_thread(self._environ),
            preexec_fn=die_with_parent(),
        )
        try:
            out, err = await process.communicate(asked)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
            raise
        if process.returncode != 0 or not out:
            log.warning("drawing a report ended with %s: %s", process.returncode, err.decode(errors="replace")[-2000:])
            return None
        return out.decode()

    def _environ(self) -> dict[str, str]:
        """matplotlib writes down which fonts there are: beside the scratch folders, because a home may not be there to
        write into. Where that folder cannot be made either it takes one in /tmp by itself."""
        folder = self._settings.scratch / "matplotlib"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        return self._settings.environ() | {"MPLCONFIGDIR": str(folder), "MPLBACKEND": "svg", "OMP_NUM_THREADS": "1"}

    def _keep(self, mark: str, found: str) -> None:
        self._kept[mark] = found
        while len(self._kept) > KEPT or (len(self._kept) > 1 and sum(map(len, self._kept.values())) > KEPT_BYTES):
            self._kept.popitem(last=False)
