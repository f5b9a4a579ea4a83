"""Redis killed, and away for a while, and back: predictions never fail."""

from __future__ import annotations

import signal
import time

import httpx
import pytest
import redis
from running import Service, until

from app.embedded import EmbeddedStore, url_of

from . import networks
from .conftest import Start
from .field import ONES, ONES_V2, Calling, calling, deploy, family, memory_mib, pids, publish, request

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ASKS = [request("/predict/web", ONES), request("/v2/models/web/infer", ONES_V2)]


def constantly(service: Service) -> Calling:
    return Calling(service, ASKS, mode="closed", connections=8, seconds=3600, check="factor")


def ready(service: Service) -> bool:
    return httpx.get(f"{service.url}/healthz/ready", timeout=240).status_code == 200


@pytest.mark.parametrize("processes", [1, 2])
def test_the_embedded_store_is_killed_again_and_again(start: Start, processes: int) -> None:
    service = start(processes)
    for number in (1, 2):
        publish(service, networks.scaled(number))
    deploy(service, "web", "net@1")
    ids, held = pids(service), memory_mib(service)
    made = constantly(service)
    try:
        for _ in range(5):
            (server,) = family(service, "valkey")
            server.kill()
            server.wait(240)
            until(lambda: bool(family(service, "valkey")))
            until(lambda: ready(service))
        deploy(service, "web", "net@2")  # nothing was lost, and what changes is heard again
        told = made.stop()
    finally:
        made.end()
    told.only(200)
    assert told.said.keys() == {"1", "2"}
    assert pids(service) == ids
    assert memory_mib(service) < held + 128
    print(f"\n{told.statuses}, slowest {told.worst('good_s', 2):.3f} s")


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_redis_of_ones_own_is_away_for_a_while(
    start: Start, tmp_path_factory: pytest.TempPathFactory, how: str
) -> None:
    store = EmbeddedStore(tmp_path_factory.mktemp("store"))
    url = store.start()
    try:
        service = start(ENGINESMITH_REDIS_URL=url)
        for number in (1, 2):
            publish(service, networks.scaled(number), redis_url=url)
        deploy(service, "web", "net@1")
        with calling(service, ASKS, mode="closed", connections=8, seconds=3600, check="factor") as made:
            process = store._process
            assert process is not None
            if how == "killed":
                process.kill()
                process.wait()
            else:
                process.send_signal(signal.SIGSTOP)
            until(lambda: not ready(service))
            time.sleep(5)  # the drill itself: predictions go on meanwhile
            assert httpx.get(f"{service.url}/healthz/serving", timeout=240).status_code == 200
            assert httpx.get(f"{service.url}/healthz/live", timeout=240).status_code == 200
            if how == "killed":
                store.restart()
            else:
                process.send_signal(signal.SIGCONT)
            until(lambda: ready(service))
            deploy(service, "web", "net@2")
            told = made.stop()
        told.only(200)
        assert told.said.keys() == {"1", "2"}
        print(f"\n{told.statuses}, slowest {told.worst('good_s', 2):.3f} s")
    finally:
        store.stop()


@pytest.mark.parametrize("processes", [1, 2])
def test_redis_is_emptied(start: Start, processes: int) -> None:
    """Whatever it held is gone: the service finds out by itself, and serves on meanwhile."""
    service = start(processes)
    for number in (1, 2):
        publish(service, networks.scaled(number))
    deploy(service, "web", "net@1")
    deploy(service, "other", "net@1")
    assert httpx.delete(f"{service.url}/v1/deployments/other", timeout=240).status_code == 204
    made = constantly(service)
    try:
        for _ in range(3):
            with redis.Redis.from_url(url_of(service.data)) as client:
                client.flushall()
            until(lambda: httpx.get(f"{service.url}/v1/deployments/web", timeout=240).status_code == 200)
        (web,) = httpx.get(f"{service.url}/v1/deployments", timeout=240).json()["items"]
        assert (web["name"], web["model"]) == ("web", "net@1")
        assert len(httpx.get(f"{service.url}/v1/models/net", timeout=240).json()["versions"]) == 2
        deploy(service, "web", "net@2")
        told = made.stop()
    finally:
        made.end()
    told.only(200)
    assert told.said.keys() == {"1", "2"}
