"""Redis, or the store, is away for a while: predictions go on, the API says so, jobs end as if nothing had been."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from enginesmith import Client
from redis_servers import Server
from redis_servers import until as until_redis
from running import Service, start_service, until
from s3_server import Proxy, Trouble, running_s3

from . import networks, work
from .field import ONES, calling, deploy, publish, request
from .telling import Tell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
REDIS_AWAY_S, STORE_AWAY_S = 30.0, 60.0
ASKS = [request("/predict/web", ONES)]


def refusals(service: Service, seconds: float) -> list[httpx.Response]:
    """What the API answers in that time."""
    found, deadline = [], time.monotonic() + seconds
    while time.monotonic() < deadline:
        found.append(httpx.get(f"{service.url}/v1/jobs", timeout=60))
        time.sleep(0.5)
    return found


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_redis_is_away_for_half_a_minute(how: str, tmp_path: Path, digits: dict[str, np.ndarray], tell: Tell) -> None:
    persistent = ("appendonly yes", "appendfsync always")
    server = Server(tmp_path / "redis", *persistent)
    server.wait(None)
    service = start_service(tmp_path / "data", ENGINESMITH_REDIS_URL=f"redis://127.0.0.1:{server.port}/0")
    try:
        publish(service, networks.scaled(1), name="scaled", redis_url=f"redis://127.0.0.1:{server.port}/0")
        deploy(service, "web", "scaled@1")
        with Client(service.url) as client, calling(service, ASKS, mode="closed", connections=4, seconds=3600) as made:
            work.prepare(client, digits)
            train = client.jobs.submit("train", model="net@1", dataset="digits", epochs=60, batch_size=16).id
            until(lambda: len(client.jobs.get(train).history) > 1)
            if how == "frozen":
                server.process.send_signal(signal.SIGSTOP)
            else:
                server.process.send_signal(signal.SIGTERM)
                server.process.wait()
            answers = refusals(service, REDIS_AWAY_S)
            if how == "frozen":
                server.process.send_signal(signal.SIGCONT)
            else:
                server.start()
            until_redis(lambda: bool(server.client(None).ping()), 60)
            assert {a.status_code for a in answers} == {503}
            assert all(a.headers.get("retry-after") for a in answers)
            assert {a.json()["code"] for a in answers} == {"redis_unavailable"}
            work.settled(client, service, str(train), "train")
            assert client.jobs.get(train).attempt == 1
            told = made.stop()
        told.only(200)
        tell(
            f"Redis {how} for {REDIS_AWAY_S:.0f} s: {told.statuses['200']} predictions, all answered; "
            f"{len(answers)} calls of the API, all 503 with Retry-After; the training went on in its one attempt"
        )
    finally:
        service.stop()
        server.process.send_signal(signal.SIGCONT)
        server.kill()


TROUBLES: tuple[Trouble, ...] = ("500", "503", "drop", "lose")


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    with running_s3(tmp_path) as server, Proxy(server).running() as made:
        yield made


def test_the_store_is_gone_for_a_minute(
    proxy: Proxy, tmp_path: Path, redis_url: str, digits: dict[str, np.ndarray], tell: Tell
) -> None:
    """And fails every tenth request before and after."""
    tenth: Callable[[int, str, str], Trouble | None] = lambda n, *_: None if n % 10 else TROUBLES[n // 10 % 4]  # noqa: E731
    proxy.trouble = tenth
    environ = proxy.s3.environ | {"ENGINESMITH_REDIS_URL": redis_url}
    service = start_service(tmp_path / "data", ENGINESMITH_STORE_URL=f"s3://{proxy.to.bucket()}/engines", **environ)
    try:
        with Client(service.url) as client:
            work.prepare(client, digits)
            made = client.jobs.submit("convert", model="net@1", target="onnxruntime", wait=True)
            client.deploy("web", str(made.result.model))
            ids = [str(client.jobs.submit("train", model="net@1", dataset="digits", epochs=40, batch_size=16).id)]
            until(lambda: len(client.jobs.get(ids[0]).history) > 1)
            proxy.trouble = lambda *_: "drop"
            began, x, asked = time.monotonic(), digits["x"][:1], 0
            refused = client_push(service)
            while time.monotonic() - began < STORE_AWAY_S:
                client.predict("web", x)
                asked += 1
                time.sleep(0.05)
            proxy.trouble = tenth
            assert refused.status_code == 503, refused.text
            assert refused.headers["retry-after"]
            ids.append(work.KINDS["prune"](client))
            for id, kind in zip(ids, ("train", "prune"), strict=True):
                until(lambda: client.jobs.get(id).status in ("succeeded", "failed"))  # noqa: B023
                job = client.jobs.get(id)
                assert job.status == "succeeded", job.error
                assert len(work.made_by(client, id)) == 1, kind
        failed = sum(trouble is not None for *_, trouble in proxy.seen)
        tell(
            f"S3 failed {failed} of {len(proxy.seen)} requests, all of them for {STORE_AWAY_S:.0f} s: {asked} "
            "predictions, all answered; an upload meanwhile: 503 with Retry-After; the training and a prune succeeded"
        )
    finally:
        service.stop()


def client_push(service: Service) -> httpx.Response:
    parts = {"manifest": (None, '{"name": "x"}'), "file": ("x.onnx", networks.scaled(1))}
    return httpx.post(f"{service.url}/v1/models", files=parts, timeout=120)
