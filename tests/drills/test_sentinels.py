"""The master of a set that Sentinels watch dies during a job: its replica takes over, and nothing else is seen."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from enginesmith import Client
from redis_servers import watched
from running import until

from . import networks, work
from .conftest import Start
from .field import ONES, calling, deploy, publish, request
from .telling import Tell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
QUICK = {"ENGINESMITH_LEASE_S": "4", "ENGINESMITH_REAP_S": "0.5", "ENGINESMITH_REAP_GRACE_S": "1"}


def test_the_master_is_killed(start: Start, tmp_path: Path, digits: dict[str, np.ndarray], tell: Tell) -> None:
    with watched(tmp_path / "redis") as redises:
        service = start(workers=1, ENGINESMITH_REDIS_URL=redises.url, **QUICK)
        with Client(service.url) as client:
            work.prepare(client, digits)
            publish(service, networks.scaled(1), "scaled", redis_url=redises.url)
            deploy(service, "web", "scaled@1")
            id = str(client.jobs.submit("train", model="net@1", dataset="digits", epochs=30, batch_size=16).id)
            with calling(service, [request("/predict/web", ONES)], mode="closed", connections=4, seconds=3600) as made:
                until(lambda: len(client.jobs.get(id).history) > 1)
                redises.master.kill()
                died = time.monotonic()
                until(lambda: redises.replica.client().info("replication")["role"] == "master")
                until(lambda: httpx.get(f"{service.url}/healthz/ready", timeout=60).status_code == 200)
                back_s = time.monotonic() - died
                work.settled(client, service, id, "train")
                told = made.stop()
            told.only(200)
            after = client.jobs.submit("prune", model="net@1", method="l1_unstructured", amount=0.5, wait=True)
            assert after.status == "succeeded"
    tell(
        f"a master killed during training, under {sum(told.statuses.values()):,} predictions: all answered, the API "
        f"back after {back_s:.1f} s, the job ended once"
    )
