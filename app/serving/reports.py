"""What is wanted, read; and what this replica tells of what it serves: when it changes, and before it is forgotten."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from app.domain.deployments import Deployment, LastReady
from app.errors import Unavailable
from app.serving.place import Place
from app.storage.catalog import Catalog

_AGAIN_S = 3.0  # reports live for 10


class Reports:
    """`due`, `news` and `written` on the event loop; what asks Redis (`read`, `write`, `write_gone`) in a thread."""

    def __init__(self, catalog: Catalog, replica: str) -> None:
        self._catalog = catalog
        self._replica = replica
        self._last: dict[str, tuple[float, dict[str, Any]]] = {}
        self._remembered = False

    def due(self, places: Mapping[str, Place]) -> dict[str, dict[str, Any]]:
        """The reports to be written now, by name, with figures that alone would be no reason to."""
        at, due = time.monotonic(), {}
        for name in self._last.keys() - places.keys():
            del self._last[name]
        for name, place in places.items():
            report = place.report()
            last = self._last.get(name)
            if last is None or last[1] != report or at - last[0] > _AGAIN_S:
                due[name] = report | {"figures": place.figures()}
        return due

    def news(self, places: Mapping[str, Place]) -> dict[str, LastReady]:
        """What is ready here, and is not known to be, by name."""
        return {name: news for name, place in places.items() if (news := place.news()) is not None}

    def read(self) -> tuple[list[Deployment], dict[str, LastReady]]:
        """What is wanted, and what was ready last by name. Raises Unavailable, also where Redis has just lost what it
        held: what is served goes on until it has it again."""
        remembers = self._catalog.remembers()
        if self._remembered and not remembers:
            raise Unavailable("Redis has lost what it held, and is told again")
        self._remembered = remembers
        return self._catalog.deployments(), self._catalog.all_last_ready()

    def write(self, reports: Mapping[str, dict[str, Any]], news: Mapping[str, LastReady]) -> None:
        """What is ready is kept before anybody is told that it is: who then asks for another version can go back to it.
        Raises Unavailable."""
        for name, ready in news.items():
            self._catalog.note_ready(name, ready)
        for name, report in reports.items():
            told = {k: v for k, v in report.items() if k != "figures"} | report["figures"]
            self._catalog.report_replica(self._replica, name, told)

    def written(self, reports: Mapping[str, dict[str, Any]]) -> None:
        at = time.monotonic()
        for name, report in reports.items():
            self._last[name] = (at, {k: v for k, v in report.items() if k != "figures"})

    def write_gone(self, names: Collection[str]) -> None:
        """This replica leaves: nobody is to wait for it."""
        for name in names:
            self._catalog.report_replica(self._replica, name, {"status": "gone", "generation": 0})
