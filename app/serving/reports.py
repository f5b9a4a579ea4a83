"""What this replica tells the others of what it serves: written when it changes, and before it is forgotten."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from app.serving.place import Place
from app.storage.catalog import Catalog

_AGAIN_S = 3.0  # reports live for 10


class Reports:
    """`due` on the event loop, `write` and `write_gone` in a thread, `written` on the event loop again."""

    def __init__(self, catalog: Catalog, replica: str) -> None:
        self._catalog = catalog
        self._replica = replica
        self._last: dict[str, tuple[float, dict[str, Any]]] = {}

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

    def write(self, reports: Mapping[str, dict[str, Any]]) -> None:
        """Raises Unavailable."""
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
