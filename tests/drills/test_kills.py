"""kill -9 of whatever works, all through every kind of job: it ends as if nothing had been, and published once."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from enginesmith import Client
from running import Service, start_service, until

from . import work
from .telling import Tell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
QUICK = {"ENGINESMITH_LEASE_S": "4", "ENGINESMITH_REAP_S": "0.5", "ENGINESMITH_REAP_GRACE_S": "1"}
VICTIMS = ("job", "worker", "job+worker", "app", "redis", "everything")
# Where in a job somebody dies, as shares of how long it takes undisturbed. DRILLS=all: everybody, at each of them.
PLACES = (0.02, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 0.98)


class Target:
    """A service that may be killed whole, and is started again on the same data."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.service: Service = start_service(data, **QUICK)

    def processes(self, *words: str) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.service.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if any(word in line for word in words):
                    found.append(process)
        return found

    def kill(self, victim: str) -> None:
        if victim == "everything":
            family = [psutil.Process(self.service.process.pid), *self.processes("")]
        else:
            words = {"job": ("workers.horse",), "worker": ("workers.listen",), "app": ("app http",)}
            words |= {"job+worker": ("workers.horse", "workers.listen"), "redis": ("valkey-server",)}
            family = self.processes(*words[victim])
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if victim == "everything":
            self.service.process.wait()
            assert self.service.process.stdout is not None
            self.service.process.stdout.close()
            self.service = start_service(self.data, **QUICK)

    def is_back(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.service.url}/healthz/ready", timeout=30).status_code == 200
        return False


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, digits: dict[str, np.ndarray]) -> Iterator[Target]:
    made = Target(tmp_path_factory.mktemp("kills"))
    with Client(made.service.url) as client:
        work.prepare(client, digits)
    yield made
    work.tidied(made.service)
    made.service.stop()


def running(client: Client, id: str) -> bool:
    return client.jobs.get(id).status != "queued"


@pytest.mark.parametrize("kind", work.KINDS)
def test_killed_in_the_middle_of(kind: str, target: Target, tell: Tell) -> None:
    with Client(target.service.url) as client:
        id = work.KINDS[kind](client)
        until(lambda: running(client, id))
        began = time.monotonic()
        work.settled(client, target.service, id, kind)
        whole_s = time.monotonic() - began
    number = list(work.KINDS).index(kind)
    if os.environ.get("DRILLS") == "all":
        plan = list(itertools.product(PLACES, VICTIMS))
    else:  # each place once, each victim at least once, and other pairs for every kind
        plan = [(place, VICTIMS[(n + number) % len(VICTIMS)]) for n, place in enumerate(PLACES)]
    phases: dict[str, None] = {}
    for place, victim in plan:
        with Client(target.service.url) as client:
            id = work.KINDS[kind](client)
            until(lambda: running(client, id))  # noqa: B023
            time.sleep(place * whole_s)
            job = client.jobs.get(id)
            phases[job.phase if job.status == "running" else "ended"] = None
        target.kill(victim)
        until(target.is_back)
        with Client(target.service.url) as client:
            work.settled(client, target.service, id, kind)
    tell(f"{kind}: killed {len(plan)} times ({', '.join(VICTIMS)}), while it was: {', '.join(phases)}; nothing lost")
