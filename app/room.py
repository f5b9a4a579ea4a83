"""Whether there is room for more: on the disk, in the store, and for whoever sends it. Asked before a body is read, so
that a disk never fills up under what is running."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import NamedTuple

from app.domain.keys import Key
from app.errors import InsufficientStorage, Overloaded
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.usage import Usage, bytes_of, measure

FRESH_S = 30.0
_OF_DISK = 0.1  # a small disk keeps a tenth free at most


class Disk(NamedTuple):
    """Bytes. reserve: what is not given away."""

    total: int
    free: int
    reserve: int


class Room:
    """One for each process that takes uploads and jobs."""

    def __init__(self, settings: Settings, artifacts: Artifacts, catalog: Catalog) -> None:
        self._settings, self._artifacts, self._catalog = settings, artifacts, catalog
        self._turn = threading.Lock()
        self._usage: tuple[float, Usage] | None = None

    def usage(self) -> Usage:
        """At most half a minute old. Raises Unavailable."""
        with self._turn:  # who comes while it is measured waits for it
            if self._usage is None or time.monotonic() - self._usage[0] > FRESH_S:
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

    def check(self, incoming: int, key: Key | None) -> None:
        """incoming: bytes that are to be kept, as far as they are known. Raises InsufficientStorage, Overloaded where
        the key has as many jobs as it may, Unavailable."""
        disk = self.disk()
        if disk.free - incoming < disk.reserve:
            raise InsufficientStorage(
                f"the disk is nearly full: {disk.free} bytes are free, {disk.reserve} of them in reserve",
                code="disk_nearly_full",
                hint="delete versions and data sets that nobody needs, or have the disk made larger",
            )
        most = self._settings.store_bytes
        if most and (held := self.usage().total.bytes) + incoming > most:
            raise InsufficientStorage(
                f"the store holds {held} bytes, and may hold {most}",
                code="store_quota",
                hint="delete versions and data sets that nobody needs; GET /v1/usage says what takes how much",
            )
        if key is not None:
            self._check_key(incoming, key)

    def _check_key(self, incoming: int, key: Key) -> None:
        most = key.limits.bytes
        if most is not None and (held := bytes_of(self._catalog, key.owner)) + incoming > most:
            raise InsufficientStorage(
                f"what was made with this key takes {held} bytes, and may take {most}",
                code="key_quota",
                hint="delete versions and data sets that were made with it",
            )
        most = key.limits.jobs
        if most is not None and (held := self._catalog.open_of(key.owner)) >= most:
            raise Overloaded(
                f"this key has {held} jobs that have not ended, and may have {most}",
                code="too_many_jobs",
                hint="wait for one of them, or cancel it",
                headers={"Retry-After": "5"},
            )
