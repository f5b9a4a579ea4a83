"""kill -9 of whatever works, in each phase of every kind of job: it ends as if nothing had been, and published once."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
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


class Points:
    """Where jobs are, and one at which the next of them stands still: see points/sitecustomize.py."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log, self._hold, self._held = folder / "log", folder / "hold", folder / "held"
        folder.mkdir()

    @property
    def environ(self) -> dict[str, str]:
        return {"PYTHONPATH": str(Path(__file__).parent / "points"), "DRILL_FOLDER": str(self.folder)}

    def seen(self) -> list[str]:
        """Each once, in their order; forgotten thereby."""
        text = self._log.read_text() if self._log.exists() else ""
        self._log.unlink(missing_ok=True)
        return list(dict.fromkeys(text.splitlines()))

    @contextlib.contextmanager
    def hold(self, point: str) -> Iterator[Callable[[], bool]]:
        """Gives whether somebody stands there."""
        self._held.unlink(missing_ok=True)
        self._hold.write_text(point)
        try:
            yield self._held.exists
        finally:
            self._hold.unlink()
            self._held.unlink(missing_ok=True)


class Target:
    """A service that may be killed whole, and is started again on the same data."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.points = Points(data.parent / "points")
        self.environ = QUICK | self.points.environ
        self.service: Service = start_service(data, **self.environ)

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
            self.service = start_service(self.data, **self.environ)

    def is_back(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.service.url}/healthz/ready", timeout=30).status_code == 200
        return False


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, digits: dict[str, np.ndarray]) -> Iterator[Target]:
    made = Target(tmp_path_factory.mktemp("kills") / "data")
    with Client(made.service.url) as client:
        work.prepare(client, digits)
    yield made
    work.tidied(made.service)
    made.service.stop()


@pytest.mark.parametrize("kind", work.KINDS)
def test_killed_in_each_phase_of(kind: str, target: Target, tell: Tell) -> None:
    target.points.seen()
    with Client(target.service.url) as client:
        work.settled(client, target.service, work.KINDS[kind](client), kind)
    points = target.points.seen()
    if os.environ.get("DRILLS") == "all":
        plan = list(itertools.product(points, VICTIMS))
    else:  # each point once, each victim at least once, and other pairs for every kind
        number, most = list(work.KINDS).index(kind), max(len(points), len(VICTIMS))
        plan = [(points[n % len(points)], VICTIMS[(n + number) % len(VICTIMS)]) for n in range(most)]
    for point, victim in plan:
        with Client(target.service.url) as client, target.points.hold(point) as held:
            id = work.KINDS[kind](client)
            until(held)
            target.kill(victim)
        until(target.is_back)
        with Client(target.service.url) as client:
            work.settled(client, target.service, id, kind)
    killed = ", ".join(f"{point} ({victim})" for point, victim in plan)
    tell(f"{kind}: killed {len(plan)} times, with kill -9, while it was at: {killed}; nothing lost")
