"""What dies in the middle: a job's process, its worker, both, an upload; and what is cancelled."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from enginesmith import Client, JobFailed
from networks import SimpleCNN
from running import Service, files_in, start_service, until

# Longer than any test waits: a training that has ended was ended by somebody.
LONG = {"epochs": 10_000, "batch_size": 8, "lr": 0.01, "schedule": "constant"}
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, digits: dict[str, np.ndarray]) -> Iterator[Service]:
    """A service of this module's own, whose workers may be killed."""
    service = start_service(tmp_path_factory.mktemp("faults"))
    with Client(service.url) as client:
        client.datasets.push("digits", {name: array[:600] for name, array in digits.items()})
        client.push(SimpleCNN(), "net", example=torch.zeros(1, 1, 28, 28), wait=True)
    yield service
    service.stop()


@pytest.fixture
def client(own: Service) -> Iterator[Client]:
    with Client(own.url) as opened:
        yield opened


def processes(service: Service, *words: str) -> list[psutil.Process]:
    """The service's descendants whose command line has all these words."""
    found = []
    for process in psutil.Process(service.process.pid).children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if all(word in line for word in words):
            found.append(process)
    return found


def start_training(client: Client, epochs_before: int = 2, **more: object) -> str:
    job = client.jobs.submit("train", model="net@1", dataset="digits", **(LONG | more))
    until(lambda: len(client.jobs.get(job).history) >= epochs_before)
    return str(job.id)


def kill(victims: list[psutil.Process]) -> None:
    assert victims
    for process in victims:
        with contextlib.suppress(psutil.NoSuchProcess):  # a worker that is killed takes its job along
            process.kill()


def test_a_running_job_is_cancelled_long_before_its_end(own: Service, client: Client) -> None:
    id = start_training(client)
    client.jobs.cancel(id)
    until(lambda: client.jobs.get(id).status == "cancelled")
    assert len(client.jobs.get(id).history) < LONG["epochs"] / 2
    until(lambda: files_in(own.data / "store" / "checkpoints" / id) == [])
    until(lambda: not list((own.data / "scratch" / "jobs").glob(f"{id}*")))


@pytest.mark.parametrize(
    "victims",
    [
        pytest.param(["job"], marks=pytest.mark.slow),
        ["worker"],
        pytest.param(["job", "worker"], marks=pytest.mark.slow),
    ],
    ids="+".join,
)
def test_a_killed_attempt_resumes_from_its_checkpoint(own: Service, client: Client, victims: list[str]) -> None:
    id = start_training(client)
    until(lambda: files_in(own.data / "store" / "checkpoints" / id) != [])
    doomed = {"job": processes(own, "workers.horse"), "worker": processes(own, "workers.listen", "--queues")}
    for victim in victims:
        kill(doomed[victim])
    until(lambda: client.jobs.get(id).attempt == 2)
    before = len(client.jobs.get(id).history)
    until(lambda: len(client.jobs.get(id).history) > before)
    epochs = [row["epoch"] for row in client.jobs.get(id).history]
    assert epochs == list(range(1, len(epochs) + 1))
    client.jobs.cancel(id)
    until(lambda: client.jobs.get(id).status == "cancelled")


@pytest.mark.slow
def test_a_worker_that_is_asked_to_stop_hands_its_job_back_however_often(own: Service, client: Client) -> None:
    id = start_training(client)
    for attempt in (1, 2, 3):
        until(lambda n=attempt: is_at(client, id, n, "running"))  # type: ignore[misc]
        until(lambda n=attempt: len(client.jobs.get(id).history) > n)  # type: ignore[misc]
        for worker in processes(own, "workers.listen", "--queues"):
            worker.terminate()
        until(lambda n=attempt: is_at(client, id, n + 1) or is_at(client, id, n, "failed"))  # type: ignore[misc]
    job = client.jobs.get(id)
    assert job.attempt == 4
    assert job.status != "failed"  # two that were lost would have been enough for that
    client.jobs.cancel(id)
    until(lambda: client.jobs.get(id).status == "cancelled")


def test_killed_twice_it_fails_with_a_clear_error_and_can_be_retried(own: Service, client: Client) -> None:
    id = start_training(client)
    for attempt in (1, 2):
        until(lambda n=attempt: is_at(client, id, n, "running"))  # type: ignore[misc]
        kill(processes(own, "workers.horse"))
        until(lambda n=attempt: is_at(client, id, n + 1) or is_at(client, id, n, "failed"))  # type: ignore[misc]
    job = client.jobs.get(id)
    assert job.status == "failed"
    assert job.error["code"] == "worker_lost"
    assert job.error["hint"]
    with pytest.raises(JobFailed):
        client.jobs.wait(id, timeout=120)
    client.jobs.retry(id)
    until(lambda: client.jobs.get(id).status == "running")
    client.jobs.cancel(id)
    until(lambda: client.jobs.get(id).status == "cancelled")


def is_at(client: Client, id: str, attempt: int, *statuses: str) -> bool:
    job = client.jobs.get(id)
    return job.attempt == attempt and (not statuses or job.status in statuses)


def test_a_client_that_goes_away_leaves_nothing(own: Service) -> None:
    host, port = own.url.removeprefix("http://").split(":")
    head = (
        "POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        "Content-Length: 900000000\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="file"; filename="n.pt"\r\n\r\n'
    )
    with socket.create_connection((host, int(port))) as line:
        line.sendall(head.encode())
        for _ in range(12):
            line.sendall(b"PK\x03\x04" + os.urandom(1 << 20))
        until(lambda: files_in(own.data / "store" / "staging") != [])
    until(lambda: files_in(own.data / "store" / "staging") == [])


def test_work_goes_on_while_redis_is_away(own: Service, client: Client) -> None:
    (server,) = processes(own, "valkey")
    id = start_training(client, epochs_before=1)
    server.suspend()
    time.sleep(8)
    server.resume()
    before = len(client.jobs.get(id).history)
    until(lambda: len(client.jobs.get(id).history) > before)
    assert client.jobs.get(id).attempt == 1
    client.jobs.cancel(id)
    until(lambda: client.jobs.get(id).status == "cancelled")


def test_what_a_killed_app_left_of_an_upload_goes_at_the_next_start(tmp_path: Path) -> None:
    left = tmp_path / "data" / "scratch" / "dataset-left"
    left.mkdir(parents=True)
    (left / "upload").write_bytes(b"half")
    service = start_service(tmp_path / "data", workers=0)
    assert service.stop() == 0
    assert not left.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_everything_it_started(tmp_path: Path, number: int) -> None:
    service = start_service(tmp_path / "data", workers=2)
    until(lambda: len(processes(service, "workers.listen")) == 2)
    family = psutil.Process(service.process.pid).children(recursive=True)
    assert len(family) >= 5
    assert service.stop(number) == 0
    assert psutil.wait_procs(family, timeout=120)[1] == []
