"""Searches over HTTP, on real workers that are killed, stopped and restarted in the middle of it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from enginesmith import Client
from enginesmith.records import Job
from networks import SimpleCNN
from running import Service, files_in, start_service, until

# Ends after about a second of work, and long after whoever waits for it has gone.
SHORT = {"kind": "train", "epochs": 1, "batch_size": 64}
LONG = {"kind": "train", "epochs": 10_000, "batch_size": 8, "schedule": "constant"}
SPACE = {"train.lr": [0.01, 0.02, 0.03, 0.04]}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, digits: dict[str, np.ndarray]) -> Iterator[Service]:
    service = start_service(tmp_path_factory.mktemp("search"), workers=2)
    push(service, digits)
    yield service
    service.stop()


def push(service: Service, digits: dict[str, np.ndarray]) -> None:
    with Client(service.url) as client:
        client.datasets.push("digits", {name: array[:300] for name, array in digits.items()})
        client.push(SimpleCNN(), "net", example=torch.zeros(1, 1, 28, 28), wait=True)


@pytest.fixture
def client(own: Service) -> Iterator[Client]:
    with Client(own.url) as opened:
        yield opened


def search(client: Client, link: dict[str, Any] = SHORT, **more: Any) -> str:
    fields = {"model": "net@1", "dataset": "digits", "chain": [link], "space": SPACE, "sampler": "grid", "parallel": 2}
    return str(client.jobs.submit("search", **(fields | more)).id)


def trials(client: Client, id: str) -> list[Job]:
    return client.jobs.list(parent=id, limit=None)


def states(client: Client, id: str) -> list[str]:
    return sorted(trial.status for trial in trials(client, id))


def ended(client: Client, id: str) -> bool:
    return str(client.jobs.get(id).status) in ("succeeded", "failed", "cancelled")


def processes(service: Service, *words: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(service.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if all(word in " ".join(process.cmdline()) for word in words):
                found.append(process)
    return found


def kill(victims: list[psutil.Process]) -> None:
    assert victims
    for process in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.parametrize("victims", [["job"], ["worker"], ["job", "worker"]], ids="+".join)
def test_a_killed_worker_costs_no_trial(own: Service, client: Client, victims: list[str]) -> None:
    """Each time another seed: what was computed before would else be found, and nothing be there to kill."""
    link = SHORT | {"epochs": 40, "seed": len(victims) + 10 * (victims[0] == "worker")}
    id = search(client, link)
    until(lambda: any(client.jobs.get(trial).history for trial in trials(client, id) if trial.status == "running"))
    doomed = {"job": processes(own, "workers.horse"), "worker": processes(own, "workers.listen", "--queues")}
    for victim in victims:
        kill(doomed[victim])
    until(lambda: ended(client, id))
    job = client.jobs.get(id)
    assert job.status == "succeeded", job.error
    assert job.result.report["trials"]["complete"] == 4
    assert states(client, id) == ["succeeded"] * 5  # and the judge


def test_a_trial_that_always_dies_is_told_as_failed(own: Service, client: Client) -> None:
    id = search(client, LONG | {"seed": 5}, space={"train.lr": [0.01]})
    for attempt in (1, 2):
        until(lambda n=attempt: [(t.attempt, t.status) for t in trials(client, id)] == [(n, "running")])  # type: ignore[misc]
        kill(processes(own, "workers.horse"))
    until(lambda: ended(client, id))
    job = client.jobs.get(id)
    assert job.status == "failed"
    assert job.error["code"] == "all_failed"
    assert "died 2 times" in job.error["detail"]


def test_cancel_ends_the_trials_and_retry_goes_on(own: Service, client: Client) -> None:
    id = search(client, LONG)
    until(lambda: states(client, id) == ["running", "running"])
    client.jobs.cancel(id)
    until(lambda: client.jobs.get(id).status == "cancelled")
    until(lambda: states(client, id) == ["cancelled", "cancelled"])
    until(lambda: processes(own, "workers.horse") == [])
    until(lambda: all(files_in(own.data / "store" / "checkpoints" / t.id) == [] for t in trials(client, id)))
    client.jobs.retry(id)
    until(lambda: states(client, id) == ["running", "running"])
    client.jobs.cancel(id)
    until(lambda: client.jobs.get(id).status == "cancelled")
    until(lambda: states(client, id) == ["cancelled", "cancelled"])


def test_one_trial_alone_can_be_cancelled(own: Service, client: Client) -> None:
    id = search(client, LONG | {"seed": 3})
    until(lambda: states(client, id) == ["running", "running"])
    first = min(trial.id for trial in trials(client, id))
    client.jobs.cancel(first)
    until(lambda: client.jobs.get(first).status == "cancelled")
    until(lambda: states(client, id) == ["cancelled", "running", "running"])  # the next one has taken its place
    client.jobs.cancel(id)
    until(lambda: states(client, id) == ["cancelled"] * 3)


def test_everything_is_stopped_and_started_again(tmp_path: Path, digits: dict[str, np.ndarray]) -> None:
    """With one worker: a search needs no more."""
    service = start_service(tmp_path / "data", workers=1)
    push(service, digits)
    with Client(service.url) as client:
        id = search(client, SHORT | {"epochs": 15}, parallel=4)
        until(lambda: len(client.jobs.get(id).history) >= 1)
    assert service.stop() == 0
    service = start_service(tmp_path / "data", workers=1)
    with Client(service.url) as client:
        until(lambda: len(client.jobs.get(id).history) >= 2)
    os.kill(service.process.pid, signal.SIGKILL)  # and nobody has said goodbye
    for process in processes_of(tmp_path / "data"):
        process.kill()
    service.stop()
    service = start_service(tmp_path / "data", workers=1)
    try:
        with Client(service.url) as client:
            until(lambda: ended(client, id))
            job = client.jobs.get(id)
            assert job.status == "succeeded", job.error
            assert job.result.report["trials"]["complete"] == 4
            assert [row["trial"] for row in job.result.report["history"]] == [0, 1, 2, 3]
            assert job.result.model in [version.ref for version in client.models.get("net").versions]
    finally:
        service.stop()


def processes_of(data: Path) -> list[psutil.Process]:
    """Everything that a service left behind, its store included."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(data) in process.environ().get("ENGINESMITH_DATA", "") or str(data) in " ".join(process.cmdline()):
                found.append(process)
    return found
