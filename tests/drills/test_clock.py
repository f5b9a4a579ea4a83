"""The clock jumps by an hour, forth and back, while jobs run: nobody is declared dead, nothing is done twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from enginesmith import Client
from running import Service, start_service, until

from . import networks, work
from .field import deploy, predict, publish
from .telling import Tell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
faked = pytest.importorskip("libfaketime", reason="pip install libfaketime")
LIBRARY = Path(faked.__file__).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    path = tmp_path / "clock"
    path.write_text("+0")
    return path


@pytest.fixture
def service(tmp_path: Path, clock: Path) -> Iterator[Service]:
    faking = {
        "LD_PRELOAD": str(LIBRARY), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_RESET": "1",
    }  # fmt: skip
    made = start_service(tmp_path / "data", **faking)
    yield made
    made.stop()


def test_jumps_of_an_hour(service: Service, clock: Path, digits: dict[str, np.ndarray], tell: Tell) -> None:
    publish(service, networks.scaled(1), name="scaled")
    deploy(service, "web", "scaled@1")
    with Client(service.url) as client:
        work.prepare(client, digits)
        long = client.jobs.submit("train", model="net@1", dataset="digits", epochs=10_000, batch_size=8).id
        until(lambda: len(client.jobs.get(long).history) > 1)
        for jump in ("+3600", "+0", "-3600", "+0"):
            clock.write_text(jump)
            before = len(client.jobs.get(long).history)
            time.sleep(8)  # longer than it takes to declare somebody dead
            assert predict(service, "web").status_code == 200
            until(lambda: len(client.jobs.get(long).history) > before)  # noqa: B023
            job = client.jobs.get(long)
            assert (job.status, job.attempt) == ("running", 1)
        client.jobs.cancel(long)
        until(lambda: client.jobs.get(long).status == "cancelled")
        for jump in ("+3600", "-3600"):
            clock.write_text(jump)
            work.settled(client, service, work.KINDS["convert"](client), "convert")
    tell("the clock of everything went an hour ahead, back, an hour behind and back: the job ran on in one attempt")
