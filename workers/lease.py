"""The lease that an attempt renews from a thread, and the three ways in which an attempt is ended from outside."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from app.errors import Conflict, Problem
from app.queue import Queue
from app.settings import Settings
from app.storage.catalog import Catalog, Fenced, Stale

log = logging.getLogger("enginesmith.lease")
PR_SET_PDEATHSIG = 1


class Cancelled(Conflict):
    """Somebody does not want this job any more."""

    default_code = "cancelled"


def block_sigterm() -> None:
    """To be called first thing in a job's process: SIGTERM (also sent by the kernel when the worker dies) goes to the
    lease's thread, whatever the work is doing."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


class Ending:
    """SIGTERM to a whole process: the job that it concerns is handed back, and no other is begun."""

    def __init__(self) -> None:
        self.asked = False
        self._lease: Lease | None = None
        self._turn = threading.Lock()

    def heed(self) -> Ending:
        """From now on, in a thread. To be called after block_sigterm."""
        threading.Thread(target=self._heed, name="sigterm", daemon=True).start()
        return self

    def concerns(self, lease: Lease | None) -> None:
        """Which attempt is to be handed back from now on."""
        with self._turn:
            self._lease = lease
        if self.asked and lease is not None:
            lease.hand_back()

    def _heed(self) -> None:
        while True:
            signal.sigwait({signal.SIGTERM})
            self.asked = True
            with self._turn:
                lease = self._lease
            if lease is not None:
                lease.hand_back()


class Lease:
    """Renews while it is open. It ends the process at once when the job is cancelled, when another attempt has replaced
    this one, or on SIGTERM; in the last case the job goes back to its queue."""

    def __init__(
        self,
        catalog: Catalog,
        queue: Queue,
        settings: Settings,
        id: str,
        attempt: int,
        scratch: Path,
        process: Ending | None = None,
    ) -> None:
        self._catalog, self._queue, self._settings = catalog, queue, settings
        self._id, self._attempt, self._scratch = id, attempt, scratch
        self._done = threading.Event()
        self._ending = threading.Lock()  # held by whoever decides how this attempt ends
        self._settled = False
        self._process = process or Ending().heed()
        self.on_cancel: Callable[[], None] = lambda: None

    def __enter__(self) -> Lease:
        threading.Thread(target=self._renew, name="lease", daemon=True).start()
        self._process.concerns(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._process.concerns(None)

    def hand_back(self) -> None:
        """The job goes back to its queue, and the process ends; unless the work has just ended by itself."""
        self._end("handed back")

    def settle(self) -> None:
        """Claims the end of the attempt for the work itself: from here on nothing ends the process from outside.

        Called before the version is published, so that no cancel comes between the manifest and the job's last state.
        Raises Fenced when it is being ended already.
        """
        if not self._settled:
            self._settled = self._ending.acquire(timeout=60)
        if not self._settled:
            raise Fenced(f"attempt {self._attempt} of job {self._id} is being ended")

    def check(self) -> None:
        """Raises Fenced when this attempt may not publish any more, or is not wanted to."""
        if self._catalog.renew(self._id, self._attempt, self._settings.lease_s) == "cancelling":
            raise Cancelled(f"job {self._id} is being cancelled")

    def _renew(self) -> None:
        while not self._done.wait(self._settings.lease_renew_s):
            try:
                status = self._catalog.renew(self._id, self._attempt, self._settings.lease_s)
            except Fenced:
                if not self._done.is_set():
                    self._end("replaced")
                return
            except Problem as problem:  # Redis is away: the work goes on, and the lease when Redis is back
                log.warning("job %s: the lease could not be renewed: %s", self._id, problem.detail)
                continue
            if status == "cancelling":
                self._end("cancelled")

    def _end(self, how: str) -> None:
        if not self._ending.acquire(blocking=False):
            return  # the work has just ended by itself
        log.info("job %s, attempt %d: %s", self._id, self._attempt, how)
        with contextlib.suppress(Exception):
            if how == "cancelled":
                with contextlib.suppress(Stale):
                    self._catalog.moved(self._id, was={"cancelling"}, to="cancelled", attempt=self._attempt)
                self.on_cancel()
            elif how == "handed back":
                self._hand_back()
        shutil.rmtree(self._scratch, ignore_errors=True)
        os._exit(1)  # not 0, or RQ would keep its own record of this delivery for ever

    def _hand_back(self) -> None:
        job = self._catalog.job(self._id)
        with contextlib.suppress(Stale):
            if job.status == "cancelling":
                self._catalog.moved(self._id, was={"cancelling"}, to="cancelled", attempt=self._attempt)
                self.on_cancel()
                return
            again = self._catalog.moved(
                self._id,
                was={"running"},
                to="queued",
                attempt=self._attempt,
                next_attempt=self._attempt + 1,
                allowed_attempts=job.allowed_attempts + 1,  # the work is not to blame for a worker that stops
                phase="queued again: its worker was stopped",
            )
            self._queue.enqueue(again)
