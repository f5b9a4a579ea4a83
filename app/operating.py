"""What Prometheus is told of the service as a whole: jobs, workers, both stores, room. The same from every replica,
but for the version and the disk."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.errors import Problem
from app.observe import REGISTRY
from app.queue import Queue
from app.room import Disk, Room
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.version import VERSION

STORE_LOOK_S = 15.0  # seconds between two looks at the store
MEASURED_S = 300.0


@dataclass(frozen=True)
class Seen:
    """jobs: by (queue, status), of those that have not ended, trials too. ended: by (kind, status). waiting: on each
    queue. workers: how many take work from it. webhooks: by (id, what became of deliveries). memory: bytes that Redis
    holds, and may hold (0: without bound)."""

    redis: bool = False
    memory: tuple[int, int] = (0, 0)
    jobs: Counter[tuple[str, str]] = field(default_factory=Counter)
    ended: dict[tuple[str, str], int] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    workers: Counter[str] = field(default_factory=Counter)
    webhooks: dict[tuple[str, str], int] = field(default_factory=dict)
    disk: Disk | None = None


def look(catalog: Catalog, queue: Queue, room: Room) -> Seen:
    """Where Redis is gone that is what is seen."""
    disk = room.disk()
    try:
        jobs = Counter((job.queue, str(job.status)) for job in catalog.open_jobs())
        workers: Counter[str] = Counter()
        for worker in catalog.live_workers():
            workers.update(dict.fromkeys(worker["queues"], int(worker["count"])))
        ended, waiting, hooks = catalog.ended(), queue.lengths(), _deliveries(catalog)
        return Seen(True, catalog.memory(), jobs, ended, waiting, workers, hooks, disk)
    except Problem:
        return Seen(disk=disk)


def _deliveries(catalog: Catalog) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for hook in catalog.webhooks.all():
        standing = catalog.webhooks.standing(hook.id)
        for outcome in ("waiting", "delivered", "failed", "dropped"):
            found[hook.id, outcome] = getattr(standing, outcome)
    return found


@dataclass(frozen=True)
class Store:
    """up: whether the artifact store answers. bytes: what it holds; None: not known yet. limit: what it may hold."""

    up: bool
    bytes: int | None
    limit: int


class StoreWatch:
    """Asks the artifact store whether it is there, and every few minutes, because all of it is listed then, how much it
    holds."""

    def __init__(self, artifacts: Artifacts, room: Room, limit: int) -> None:
        self._artifacts, self._room, self._limit = artifacts, room, limit
        self._bytes: int | None = None
        self._measured = -MEASURED_S

    def look(self) -> Store:
        try:
            self._artifacts.ping()
        except Problem:
            return Store(False, self._bytes, self._limit)
        if time.monotonic() - self._measured >= MEASURED_S:
            with suppress(Problem):  # Redis is asked, too
                self._bytes = self._room.usage().total.bytes
                self._measured = time.monotonic()
        return Store(True, self._bytes, self._limit)


class Operating(Collector):
    """Tells what was seen last; nothing of the service in a process that never looks."""

    seen: Seen | None = None
    store: Store | None = None

    def collect(self) -> Iterator[Metric]:
        if self.store is not None:
            yield from _of_store(self.store)
        if self.seen is not None:
            yield from self._of_service(self.seen)

    def _of_service(self, seen: Seen) -> Iterator[Metric]:
        yield _gauge("build_info", "Which version this is", {(VERSION,): 1.0}, "version")
        yield _gauge("redis_up", "1 when Redis answers", {(): float(seen.redis)})
        if seen.redis:
            held, most = seen.memory
            yield _gauge("redis_memory_bytes", "What Redis says that it holds", {(): float(held)})
            yield _gauge("redis_memory_limit_bytes", "What it may hold; 0: it has no bound", {(): float(most)})
            yield _ended(seen.ended)
        jobs = {of: float(count) for of, count in seen.jobs.items()}
        yield _gauge("jobs", "Jobs that have not ended, trials too", jobs, "queue", "status")
        waiting = {(name,): float(count) for name, count in seen.waiting.items()}
        yield _gauge("jobs_waiting", "Deliveries that lie on a queue for a worker", waiting, "queue")
        workers = {(name,): float(count) for name, count in seen.workers.items()}
        yield _gauge("workers", "Workers that take jobs from a queue", workers, "queue")
        hooks = {of: float(count) for of, count in seen.webhooks.items()}
        yield _gauge("webhook_deliveries", "What became of the deliveries to a webhook", hooks, "webhook", "outcome")
        if seen.disk is not None:
            yield _gauge("disk_free_bytes", "Free on the fullest disk written to", {(): float(seen.disk.free)})
            yield _gauge("disk_reserve_bytes", "Of them not given away", {(): float(seen.disk.reserve)})


def _of_store(store: Store) -> Iterator[Metric]:
    yield _gauge("store_up", "1 when the artifact store answers", {(): float(store.up)})
    if store.bytes is not None:
        yield _gauge("store_bytes", "What the artifact store holds", {(): float(store.bytes)})
    yield _gauge("store_limit_bytes", "What it may hold; 0: it has no bound", {(): float(store.limit)})


def _ended(counts: Mapping[tuple[str, str], int]) -> Metric:
    about = "Jobs that have ended since Redis began, trials too"
    found = CounterMetricFamily("enginesmith_jobs_ended", about, labels=("kind", "status"))
    for of, count in sorted(counts.items()):
        found.add_metric(of, count)
    return found


def _gauge(name: str, about: str, values: Mapping[Any, float], *labels: str) -> Metric:
    found = GaugeMetricFamily(f"enginesmith_{name}", about, labels=labels)
    for of, value in sorted(values.items()):
        found.add_metric(of, value)
    return found


OPERATING = Operating()
REGISTRY.register(OPERATING)
