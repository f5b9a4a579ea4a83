"""Whether there is room for more: on the disk, in the store, and for whoever sends it. Asked before a body is read, so
that a disk never fills up under what is running, and again while it is."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from pathlib import Path
from typing import NamedTuple

from app.domain.keys import Key
from app.errors import InsufficientStorage
from app.settings import MiB, Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog, too_many_jobs
from app.storage.usage import Usage, bytes_of, measure

FRESH_S = 30.0
_OF_DISK = 0.1  # a small disk keeps a tenth free at most
_STEP = 16 * MiB  # of an upload, between two looks at the disk


class Disk(NamedTuple):
    """Bytes. reserve: what is not given away."""

    total: int
    free: int
    reserve: int


class Room:
    """One for each process that takes uploads and jobs."""

    def __init__(self, settings: Settings, artifacts: Artifacts, catalog: Catalog) -> None:
        self._settings, self._artifacts, self._catalog = settings, artifacts, catalog
        self._turn, self._door = threading.Lock(), threading.Lock()
        self._usage: tuple[float, Usage] | None = None
        self._since = 0  # bytes that came since it was measured
        self._coming: set[Coming] = set()

    def usage(self) -> Usage:
        """At most half a minute old. Raises Unavailable."""
        with self._turn:  # who comes while it is measured waits for it
            if self._usage is None or time.monotonic() - self._usage[0] > FRESH_S:
                self._since = 0
                self._usage = time.monotonic(), measure(self._artifacts, self._catalog)
            return self._usage[1]

    def disk(self) -> Disk:
        """The fullest of those that this process writes to: the store's, if it is a folder, and that of scratch."""
        places = [self._settings.scratch, *([self._artifacts.folder] if self._artifacts.folder else [])]
        return min((self._look(place) for place in places), key=lambda disk: disk.free - disk.reserve)

    def _look(self, place: Path) -> Disk:
        while not place.exists():
            place = place.parent
        found = shutil.disk_usage(place)
        return Disk(found.total, found.free, min(self._settings.disk_reserve_bytes, int(found.total * _OF_DISK)))

    def admit(self, declared: int, key: Key | None, *, job: bool) -> Coming:
        """An upload of so many bytes (0: nobody said) has its place until it leaves; whoever comes meanwhile is told of
        no room that it will take. job: whether a job is made of it. Raises like `check`."""
        with self._door:
            self.check(declared, key, job=job)
            coming = Coming(self, declared, key)
            self._coming.add(coming)
        return coming

    def leave(self, coming: Coming, *, kept: bool) -> None:
        """It is there, and counted where everything is; or it is not to be."""
        self._coming.discard(coming)
        self._since += coming.came if kept else 0

    def check(self, incoming: int, key: Key | None, *, job: bool = True) -> None:
        """incoming: bytes that are to be kept, as far as they are known. job: whether a job is to be made. Raises
        InsufficientStorage, Overloaded where the key has as many jobs as it may, Unavailable."""
        self.check_disk(incoming)
        most = self._settings.store_bytes
        if most and (held := self.usage().total.bytes + self._since + self._on_their_way()) + incoming > most:
            raise InsufficientStorage(
                f"the store holds {held} bytes, and may hold {most}",
                code="store_quota",
                hint="delete versions and data sets that nobody needs; GET /v1/usage says what takes how much",
            )
        if key is None:
            return
        most_bytes, most_jobs = key.limits.bytes, key.limits.jobs
        if most_bytes is not None:
            self._check_bytes(incoming, key.owner, most_bytes)
        if job and most_jobs is not None and (count := self._catalog.open_of(key.owner)) >= most_jobs:
            raise too_many_jobs(count, most_jobs)

    def check_disk(self, incoming: int = 0) -> None:
        """Raises InsufficientStorage."""
        disk = self.disk()
        if disk.free - incoming - sum(coming.left for coming in tuple(self._coming)) < disk.reserve:
            raise InsufficientStorage(
                f"the disk is nearly full: {disk.free} bytes are free, {disk.reserve} of them in reserve",
                code="disk_nearly_full",
                hint="delete versions and data sets that nobody needs, or have the disk made larger",
            )

    def _on_their_way(self) -> int:
        return sum(of.came + of.left for of in tuple(self._coming))

    def _check_bytes(self, incoming: int, owner: str, most: int) -> None:
        mine = [of for of in tuple(self._coming) if of.key is not None and of.key.owner == owner]
        coming = sum(of.came + of.left for of in mine)
        kept = bytes_of(self._catalog, owner, but={of.place for of in mine})
        if (held := kept + coming) + incoming > most:
            raise InsufficientStorage(
                f"what was made with this key takes {held} bytes, and may take {most}"
                + (f": no {incoming} more" if incoming else ""),
                code="key_quota",
                hint="delete versions and data sets that were made with it",
            )


class Coming:
    """An upload on its way: the bytes that came, and those that are still to come, as far as anybody said. place: of
    the store, where it is about to be kept; whoever finds it there knows it from here already."""

    def __init__(self, room: Room, declared: int, key: Key | None) -> None:
        self._room, self.key = room, key
        self.came, self.left = 0, declared
        self.place = ""
        self._looked = 0

    async def more(self, count: int) -> None:
        """So many bytes came. Raises InsufficientStorage where the disk has been filled meanwhile, by whomever."""
        self.came += count
        self.left = max(0, self.left - count)
        if self.came - self._looked >= _STEP:
            self._looked = self.came
            await asyncio.to_thread(self._room.check_disk)

    async def whole(self, kept: int | None = None) -> None:
        """Nothing more comes. kept: the bytes that are made of it, where they are others. Raises InsufficientStorage
        where they are too many, now that they are known."""
        self.came, self.left = self.came if kept is None else kept, 0
        await asyncio.to_thread(self._room.check, 0, self.key, job=False)
