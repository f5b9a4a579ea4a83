"""One worker: takes jobs from RQ's queues, one at a time, each into a fresh process. Never imports torch."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import uuid
from typing import Any

import redis
from rq import Queue
from rq.worker import DequeueStrategy, SpawnWorker

from app.errors import NotFound, Problem
from app.queue import Queue as Deliveries
from app.reaper import bring_back_now
from app.settings import Settings
from app.storage.catalog import Catalog
from app.storage.dial import dial
from app.storage.redis import LOST

log = logging.getLogger("enginesmith.worker")


class JobWorker(SpawnWorker):
    """RQ's worker that spawns; when it is asked to stop, so is its job, which goes back to the queue."""

    max_connection_wait_time = 3.0  # RQ's minute is long for somebody who waits for a job to start

    def request_stop(self, signum: Any, frame: Any) -> None:
        if self.horse_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.horse_pid, signal.SIGTERM)
        try:
            super().request_stop(signum, frame)  # type: ignore[no-untyped-call]
        except LOST:
            raise SystemExit(0) from None

    def fork_work_horse(self, job: Any, queue: Any) -> None:
        """As RQ does it, but for how the process comes to its connection: RQ writes it, the password too, on a command
        line that everybody on the machine can read, and knows no Sentinels."""
        assert self.execution is not None
        command = [sys.executable, "-m", "workers.horse", self.key, queue.name, job.id, self.execution.id]
        self._horse_pid = os.posix_spawn(sys.executable, command, Settings().environ(), setpgroup=0)

    def handle_work_horse_killed(self, job: Any, *args: Any, **kwargs: Any) -> None:
        """A process that died is seen here first. Where this fails, the lease expires and the reaper comes."""
        id, attempt = job.args
        log.warning("the process that was started for job %s, attempt %d, ended without a word", id, attempt)
        settings = Settings()
        url = settings.redis_url or ""
        with contextlib.suppress(Problem):
            catalog, deliveries = Catalog.open(settings, url, patience_s=2), Deliveries(url)
            later = catalog.trials.held(job.id)  # what it was doing by then, after the job that it was started for
            for lost in ((id, attempt), later):
                if lost is not None:
                    with contextlib.suppress(NotFound):
                        bring_back_now(catalog, deliveries, settings, *lost)
            catalog.trials.let_go(job.id)

    def maintain_heartbeats(self, *args: Any, **kwargs: Any) -> None:
        # Liveness is the lease's business; a Redis that is away must not part a worker from its job.
        with contextlib.suppress(*LOST):
            super().maintain_heartbeats(*args, **kwargs)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m workers.listen")
    parser.add_argument("--queues", required=True)
    given = parser.parse_args(arguments)
    settings = Settings()
    if settings.redis_url is None:
        raise SystemExit("ENGINESMITH_REDIS_URL is not set")
    logging.basicConfig(stream=sys.stderr, level=settings.log_level, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("rq.worker").setLevel(logging.ERROR)
    connection = dial(settings.redis_url, redis.Redis)
    # Imported here, not as __main__: the spawned process finds the class by its module's name.
    from workers.listen import JobWorker as Listening

    worker = Listening(
        [Queue(name, connection=connection) for name in given.queues.split(",")],
        name=f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}",
        connection=connection,
        worker_ttl=60,
        job_monitoring_interval=10,
        maintenance_interval=3600,
        log_job_description=False,
    )
    # In turn: a search on one queue must not keep the other waiting for as long as it runs.
    worker.work(logging_level=None, dequeue_strategy=DequeueStrategy.ROUND_ROBIN)
    return 0


if __name__ == "__main__":
    sys.exit(main())
