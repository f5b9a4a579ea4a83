"""Sends what a job says about itself (progress, metrics, log lines) from a thread, so that saying it never waits."""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import Any

from app import tracing
from app.domain.records import now
from app.errors import Problem
from app.storage.catalog import Catalog

PERIOD_S = 0.25
LINES_MAX = 10_000


class Report:
    """The newest progress is sent a few times a second; metrics and log lines all, in order."""

    def __init__(self, catalog: Catalog, id: str, attempt: int) -> None:
        self._catalog, self._id, self._attempt = catalog, id, attempt
        self._lines: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue(maxsize=LINES_MAX)
        self._progress: dict[str, Any] | None = None
        self._phase: str | None = None
        self._phase_at = time.monotonic()
        self._done_at_phase = 0.0
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="report", daemon=True)
        self._thread.start()

    def progress(self, done: float, total: float | None, unit: str, phase: str | None) -> None:
        if phase is not None and phase != self._phase:
            self._phase, self._phase_at, self._done_at_phase = phase, time.monotonic(), done
            tracing.phase(phase)
        moved, spent = done - self._done_at_phase, time.monotonic() - self._phase_at
        eta = round((total - done) * spent / moved, 1) if total and moved > 0 and spent > 0.5 else None
        self._progress = {
            "progress": {"done": round(done, 4), "total": total, "unit": unit, "eta_s": eta},
            "phase": self._phase,
        }

    def metrics(self, row: dict[str, Any]) -> None:
        self._put("metrics", row)

    def line(self, text: str, level: str) -> None:
        self._put("log", {"at": now(), "level": level, "text": text[:4000]})

    def close(self) -> None:
        """Sends the rest."""
        self._closed = True
        self._wake.set()
        self._thread.join(timeout=30)

    def _put(self, type: str, data: dict[str, Any]) -> None:
        try:
            self._lines.put_nowait((type, data))
        except queue.Full:  # Redis is away and the work talks a lot: what cannot be kept is dropped
            return
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait(PERIOD_S)
            self._wake.clear()
            try:
                self._send()
            except Problem as problem:
                logging.getLogger("enginesmith.report").warning("a report was lost: %s", problem.detail)
            if self._closed and self._lines.empty() and self._progress is None:
                return

    def _send(self) -> None:
        progress, self._progress = self._progress, None
        if progress is not None:
            fields = {k: v for k, v in progress.items() if v is not None}
            self._catalog.note(self._id, self._attempt, "progress", progress, **fields)
        while not self._lines.empty():
            type, data = self._lines.get_nowait()
            if type == "metrics":
                self._catalog.note(self._id, self._attempt, type, data, row=data, metrics=data)
            else:
                self._catalog.note(self._id, self._attempt, type, data)
