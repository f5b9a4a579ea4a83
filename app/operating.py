"""What Prometheus is told of the service as a whole: jobs, workers, room. The same from every replica."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.errors import Problem
from app.observe import REGISTRY
from app.queue import Queue
from app.room import Disk, Room
from app.storage.catalog import Catalog


@dataclass(frozen=True)
class Seen:
    """jobs: by (queue, status), of those that have not ended, trials too. waiting: on each queue. workers: how many
    take work from it. webhooks: by (id, what became of deliveries)."""

    redis: bool = False
    jobs: Counter[tuple[str, str]] = field(default_factory=Counter)
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
        return Seen(True, jobs, queue.lengths(), workers, _deliveries(catalog), disk)
    except Problem:
        return Seen(disk=disk)


def _deliveries(catalog: Catalog) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for hook in catalog.webhooks.all():
        standing = catalog.webhooks.standing(hook.id)
        for outcome in ("waiting", "delivered", "failed", "dropped"):
            found[hook.id, outcome] = getattr(standing, outcome)
    return found


class Operating(Collector):
    """Tells what was seen last; nothing in a process that never looks."""

    seen: Seen | None = None

    def collect(self) -> Iterator[Metric]:
        seen = self.seen
        if seen is None:
            return
        yield _gauge("redis_up", "1 when Redis answers", {(): float(seen.redis)})
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


def _gauge(name: str, about: str, values: Mapping[Any, float], *labels: str) -> Metric:
    found = GaugeMetricFamily(f"enginesmith_{name}", about, labels=labels)
    for of, value in sorted(values.items()):
        found.add_metric(of, value)
    return found


OPERATING = Operating()
REGISTRY.register(OPERATING)
