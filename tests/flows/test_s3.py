"""Two replicas and two workers on one bucket and one Redis: what one begins another ends, and both serve it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from enginesmith import ApiError, Client
from networks import SimpleCNN
from running import Service, start_service, until
from s3_server import Proxy, Trouble, running_s3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TROUBLES: tuple[Trouble, ...] = ("500", "503", "drop", "lose")
QUICK = {"ENGINESMITH_LEASE_S": "4", "ENGINESMITH_REAP_S": "0.5", "ENGINESMITH_REAP_GRACE_S": "1"}


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    """A server of which every tenth request fails."""
    with running_s3(tmp_path) as server, Proxy(server).running() as proxy:
        proxy.trouble = lambda number, *_: None if number % 10 else TROUBLES[number // 10 % len(TROUBLES)]
        yield proxy


@pytest.fixture
def bucket(proxy: Proxy) -> str:
    return proxy.to.bucket()


@pytest.fixture
def both(tmp_path: Path, proxy: Proxy, bucket: str, redis_url: str) -> Iterator[tuple[Service, Service]]:
    """Each with a worker, and a data folder of its own."""
    environ = QUICK | proxy.s3.environ
    environ |= {"ENGINESMITH_REDIS_URL": redis_url, "ENGINESMITH_STORE_URL": f"s3://{bucket}/engines"}
    with ExitStack() as opened:
        services = [start_service(tmp_path / name, **environ) for name in ("a", "b")]
        for service in services:
            opened.callback(service.stop)
        yield services[0], services[1]


def at_work(service: Service) -> list[psutil.Process]:
    """Its worker with the job's process, where it has one."""
    family = psutil.Process(service.process.pid).children(recursive=True)
    lines = {}
    for process in family:
        try:
            lines[process] = " ".join(process.cmdline())
        except psutil.Error:
            continue
    if not any("workers.horse" in line for line in lines.values()):
        return []
    return [process for process, line in lines.items() if "workers.horse" in line or "workers.listen" in line]


def answers(client: Client, x: np.ndarray) -> np.ndarray | None:
    try:
        found: np.ndarray = client.predict("net", x)["outputs"]["logits"]
    except ApiError:
        return None
    return found


def test_two_replicas_and_two_workers_on_one_bucket(
    both: tuple[Service, Service], proxy: Proxy, bucket: str, digits: dict[str, np.ndarray], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    with Client(both[0].url) as first, Client(both[1].url) as second:
        first.datasets.push("digits", {name: array[:600] for name, array in digits.items()})
        second.push(SimpleCNN(), "net", example=torch.zeros(1, 1, 28, 28), wait=True)

        job = first.jobs.submit("convert", model="net@1", dataset="digits", target="onnxruntime", max_batch=16)
        until(lambda: second.jobs.get(job.id).status == "running")
        for process in next(found for service in both if (found := at_work(service))):
            process.kill()
        ended = second.jobs.wait(job.id, timeout=240)
        assert (ended.status, ended.attempt, ended.result.model) == ("succeeded", 2, "net@2")
        assert [v["version"] for v in first.models.get("net")["versions"]] in ([1, 2], [2, 1])

        assert first.deploy("net", "net@2")["status"] == "ready"
        x = digits["x"][:5]
        until(lambda: answers(second, x) is not None)
        here, there = answers(first, x), answers(second, x)
        assert here is not None
        assert there is not None
        assert np.array_equal(here, there)
        assert here.shape == (5, 10)
    assert sum(trouble is not None for *_, trouble in proxy.seen) >= 3
    assert proxy.to.parts(bucket) == []
    assert not list(tmp_path.glob("*/store"))
