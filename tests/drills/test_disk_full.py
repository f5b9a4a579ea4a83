"""A disk that is full: what comes is refused, what runs says so and can be done again, predictions go on."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from enginesmith import ApiError, Client
from running import Service, files_in, start_service, until

from . import networks, work
from .field import deploy, predict, publish
from .telling import Tell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SIZE_MIB = 400
QUICK = {"ENGINESMITH_LEASE_S": "6", "ENGINESMITH_REAP_S": "0.5", "ENGINESMITH_REAP_GRACE_S": "2"}


class Disk:
    """A small one."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._ballast = place / "ballast"

    def fill(self, but_mib: float = 0) -> None:
        """All of it but so much."""
        with contextlib.suppress(OSError), self._ballast.open("ab") as file:
            while shutil.disk_usage(self.place).free > but_mib * 2**20:
                file.write(bytes(2**18))
                file.flush()

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk needs the right to mount one: {mounted.stderr.decode().strip()}")
    yield Disk(place)
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def service(disk: Disk, request: pytest.FixtureRequest) -> Iterator[Service]:
    made = start_service(disk.place / "data", **QUICK, **request.param)
    yield made
    disk.free()
    made.stop()


def upload(service: Service, mib: float, name: str) -> httpx.Response:
    held = io.BytesIO()
    rows = int(mib * 2**20 / 4 / 1024)
    np.savez(held, x=np.random.default_rng(0).standard_normal((rows, 1024)).astype(np.float32), y=np.arange(rows) % 3)
    parts = {"manifest": (None, json.dumps({"name": name, "kind": "arrays"})), "file": ("d.npz", held.getvalue())}
    return httpx.post(f"{service.url}/v1/datasets", files=parts, timeout=300)


def leftovers(service: Service) -> list[str]:
    """Of uploads."""
    store = service.data / "store"
    found = [*files_in(store / "staging"), *(service.data / "scratch").glob("dataset-*")]
    return [str(path) for path in found]


RESERVE: dict[str, Any] = {"ENGINESMITH_DISK_RESERVE_BYTES": str(32 << 20)}
NONE: dict[str, Any] = {"ENGINESMITH_DISK_RESERVE_BYTES": "0"}


@pytest.mark.parametrize("service", [RESERVE], indirect=True)
def test_it_is_refused_before_the_disk_is_full(service: Service, disk: Disk, tell: Tell) -> None:
    publish(service, networks.scaled(1))
    deploy(service, "web", "net@1")
    disk.fill(but_mib=40)
    answer = upload(service, 12, "d")
    assert (answer.status_code, answer.json()["code"]) == (507, "disk_nearly_full")
    assert predict(service, "web").status_code == 200
    disk.free()
    assert upload(service, 12, "d").status_code == 201
    assert leftovers(service) == []
    tell("an upload that would have taken of the reserve: 507; predictions went on; the same one, later: taken")


@pytest.mark.parametrize("service", [NONE], indirect=True)
def test_it_is_full_during_uploads_training_and_publishing(
    service: Service, disk: Disk, digits: dict[str, np.ndarray], tell: Tell
) -> None:
    with Client(service.url) as client:
        work.prepare(client, digits)
        converted = client.jobs.submit("convert", model="net@1", target="onnxruntime", wait=True)
        client.deploy("web", str(converted.result.model))
        x = digits["x"][:2]
        before = client.predict("web", x)["outputs"]

        disk.fill(but_mib=8)
        answer = upload(service, 30, "large")
        assert answer.status_code == 507, answer.text
        assert leftovers(service) == []
        disk.free()
        assert upload(service, 30, "large").status_code == 201
        assert client.datasets.get("large")["version"] == 1
        tell("full during an upload: 507 and nothing left of it; the same one, later: version 1")

        long = client.jobs.submit("train", model="net@1", dataset="digits", epochs=10_000, batch_size=8).id
        until(lambda: len(client.jobs.get(long).history) > 2)
        disk.fill()
        until(lambda: answers(client, long, "failed"))
        assert client.predict("web", x)["outputs"].keys() == before.keys()
        disk.free()
        until(lambda: answers(client, long, "failed"))
        job = client.jobs.get(long)
        assert job.error["status"] == 507, job.error
        client.jobs.retry(long)
        until(lambda: answers(client, long, "running") and len(client.jobs.get(long).history) > 3)
        epochs = [row["epoch"] for row in client.jobs.get(long).history]
        assert epochs == list(range(1, len(epochs) + 1))
        client.jobs.cancel(long)
        until(lambda: answers(client, long, "cancelled"))
        tell(f"full during a training: it failed and said why ({job.error['detail']}); a retry went on with it")

        for kind in ("import", "prune"):
            disk.fill(but_mib=0.3)
            id = ""
            with contextlib.suppress(ApiError):  # an upload that is refused
                id = work.KINDS[kind](client)
            if not id:
                disk.free()
                id = work.KINDS[kind](client)
            until(lambda: answers(client, id, "failed", "succeeded"))  # noqa: B023
            disk.free()
            until(lambda: answers(client, id, "failed", "succeeded"))  # noqa: B023
            if client.jobs.get(id).status == "failed":
                assert client.jobs.get(id).error["status"] in (503, 507), client.jobs.get(id).error
                client.jobs.retry(id)
            work.settled(client, service, id, kind)
        tell("full while jobs fetched and published: they failed and said so; retried, each published one version")
        assert client.predict("web", x)["outputs"].keys() == before.keys()


def answers(client: Client, id: str, *statuses: str) -> bool:
    """Whether it is told, and so: Redis, whose file is on that disk too, may not take or say anything meanwhile."""
    with contextlib.suppress(Exception):
        return client.jobs.get(id).status in statuses
    return False
