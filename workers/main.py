"""The parent of a host's workers: starts them again when they die, announces them, reaps lost attempts. No torch."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import signal
import socket
import threading
import time
import uuid
from pathlib import Path
from types import FrameType
from typing import Any

from app import runtimes, tracing
from app.domain.plans import queue_of, queue_of_runtime
from app.domain.records import now
from app.embedded import answers, refuses, url_of
from app.errors import NotFound, Problem
from app.observe import configure_logs
from app.processes import Child
from app.queue import NAMES, Queue
from app.reaper import reap
from app.settings import Settings, chosen, unknown
from app.storage.catalog import Catalog
from workers import alive

log = logging.getLogger("enginesmith.workers")
STOP_S = 15.0
SCRATCH_KEPT_S = 120.0


def work(settings: Settings, queues: tuple[str, ...], count: int) -> int:
    """Runs `count` workers until SIGTERM or SIGINT; the exit code."""
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    url = settings.redis_url or url_of(settings.data)
    if not _wait_for_redis(url, settings, stopping):
        return 0
    threads = settings.threads or max(1, (os.cpu_count() or 1) // count)
    queues = (*queues, *_gpu_queues(queues))
    settings = settings.model_copy(update={"redis_url": url, "data": settings.data.absolute(), "threads": threads})
    environ = settings.environ() | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    host = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    children = [
        Child(f"worker {n}", ["-m", "workers.listen", "--queues", ",".join(queues)], environ) for n in range(count)
    ]
    for child in children:
        child.start()
    log.info("%d worker(s) on queues %s, %d thread(s) each", count, ", ".join(queues), threads)
    keeper = threading.Thread(target=_keep, args=(settings, url, host, queues, count, stopping), daemon=True)
    keeper.start()
    while not stopping.wait(0.2):
        for child in children:
            child.tend()
    for child in children:
        child.ask_to_stop()
    deadline = time.monotonic() + STOP_S
    for child in children:
        child.end(deadline)
    keeper.join(timeout=5)
    return 0


def _gpu_queues(queues: tuple[str, ...]) -> list[str]:
    """Of each runtime that needs a GPU, and has one here: where its engines are asked for, and plans for this GPU."""
    found: list[str] = []
    for name in runtimes.names() if "gpu" in queues else ():
        ties = runtimes.ties(name)
        if ties is not None and runtimes.get(name).available().ok:
            found += [queue_of_runtime(name), queue_of(name, ties)]
    return found


def _keep(
    settings: Settings, url: str, id: str, queues: tuple[str, ...], count: int, stopping: threading.Event
) -> None:
    """Announces these workers and reaps, every few seconds, whatever Redis is doing."""
    catalog, queue = Catalog.open(settings, url, patience_s=2), Queue(url)
    about = describe(id, queues, count)
    while True:
        try:
            alive.touch(settings.scratch)
            catalog.announce_worker(about)
            reap(catalog, queue, settings)
            _tidy(settings.scratch / "jobs", catalog)
        except Problem as problem:
            log.warning("%s: %s", problem.code, problem.detail)
        except Exception:
            log.exception("the keeper stumbled")
        if stopping.wait(settings.reap_s):
            break
    with contextlib.suppress(Problem):  # else it is forgotten by itself
        catalog.drop_worker(id)


def describe(id: str, queues: tuple[str, ...], count: int) -> dict[str, Any]:
    """What the app shows of these workers: which targets they can build, on what, how well their sandbox isolates."""
    from workers.load import sandbox

    fences = sandbox.fences()
    targets: dict[str, Any] = {}
    for name in runtimes.names():
        if name != "echo":
            found = runtimes.get(name).available()
            targets[name] = {
                "ok": found.ok, "reason": found.reason, "precisions": list(found.precisions),
                "version": found.version, "device": found.device,
            }  # fmt: skip
    return {
        "id": id, "host": socket.gethostname(), "queues": list(queues), "count": count, "targets": targets,
        "isolation": fences.level if fences else "none", "started_at": now(),
        "fences": fences.told() if fences else "unknown: the sandbox does not start here",
    }  # fmt: skip


def _tidy(folder: Path, catalog: Catalog) -> None:
    """Removes the scratch folders that killed attempts left on this host."""
    for place in folder.glob("*-*"):
        id, _, attempt = place.name.rpartition("-")
        if time.time() - place.stat().st_mtime < SCRATCH_KEPT_S:
            continue
        try:
            job = catalog.job(id)
            live = job.status in ("running", "cancelling") and str(job.attempt) == attempt
        except NotFound:
            live = False
        if not live:
            shutil.rmtree(place, ignore_errors=True)


def _wait_for_redis(url: str, settings: Settings, stopping: threading.Event) -> bool:
    said = ""
    where = "Redis" if settings.redis_url else f"the store in {settings.data} (enginesmith serve starts it)"
    while not stopping.is_set():
        if answers(url):
            return True
        why = f"waiting for {where}" + (", which refuses the password" if refuses(url) else "")
        if why != said:
            log.warning(why)
            said = why
        stopping.wait(0.5)
    return False


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="enginesmith worker", description="Runs jobs.")
    parser.add_argument("--data", type=Path, help="the data folder of an enginesmith serve on this machine")
    parser.add_argument("--queues", default=",".join(NAMES), help="which jobs to take: gpu, cpu, or both, in turn")
    parser.add_argument("--count", type=int, default=1, help="how many jobs at a time")
    given = parser.parse_args(arguments)
    queues = tuple(q.strip() for q in given.queues.split(","))
    if not set(queues) <= set(NAMES):
        parser.error(f"--queues takes {', '.join(NAMES)}, not {given.queues!r}")
    if given.count < 1:
        parser.error("--count must be at least 1")
    try:
        settings = chosen(**({"data": given.data} if given.data else {}))
        tracing.check(settings)
        answers(settings.redis_url or url_of(settings.data))  # a URL of no kind that Redis knows is a ValueError
    except ValueError as error:
        parser.error(f"the settings are wrong: {error}")
    except Problem as problem:
        parser.error(f"{problem.detail}\nhint: {problem.hint}")
    configure_logs(settings.log_level, "workers")
    for line in unknown():
        log.warning(line)
    return work(settings, queues, given.count)
