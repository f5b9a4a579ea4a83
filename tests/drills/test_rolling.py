"""Apps and workers are replaced one after the other, under load: no request fails, no job is lost."""

from __future__ import annotations

import http.client
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from enginesmith import Client
from running import Service, start_service, until

from . import networks, work
from .field import JSON, ONES, deploy, publish
from .telling import Tell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CALLERS = 4


class Balancer:
    """As one in front of a cluster: asks `/healthz/serving`, keeps connections, and tries another replica where one
    takes no connection, or has closed the one that was kept before a byte of an answer came."""

    def __init__(self) -> None:
        self.replicas: list[str] = []
        self.serving: set[str] = set()
        self.answered, self.failed = 0, list[str]()
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._look)]
        self._threads += [threading.Thread(target=self._call, args=(n,)) for n in range(CALLERS)]

    def __enter__(self) -> Balancer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _look(self) -> None:
        while not self._ending.wait(0.1):
            for url in list(self.replicas):
                try:
                    ok = httpx.get(f"{url}/healthz/serving", timeout=5).status_code == 200
                except httpx.HTTPError:
                    ok = False
                (self.serving.add if ok else self.serving.discard)(url)

    def _call(self, number: int) -> None:
        kept: dict[str, http.client.HTTPConnection] = {}
        turn = number
        while not self._ending.is_set():
            if not self.answered and not self.serving:  # the drill has not begun
                time.sleep(0.05)
                continue
            turn += 1
            for tried in range(20):
                among = sorted(self.serving)
                if not among:
                    time.sleep(0.05)
                    continue
                if self._ask(among[(turn + tried) % len(among)], kept):
                    break
            else:
                self.failed.append("nobody takes a connection")
        for line in kept.values():
            line.close()

    def _ask(self, url: str, kept: dict[str, http.client.HTTPConnection]) -> bool:
        line = kept.pop(url, None) or http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        try:
            line.request("POST", "/predict/web", ONES, JSON)
            answer = line.getresponse()
        except (ConnectionRefusedError, BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):
            line.close()  # before a byte of an answer: another one is asked, as every balancer does
            return False
        body = answer.read()
        if answer.status != 200:
            self.failed.append(f"{answer.status}: {body[:200]!r}")
        self.answered += 1
        if answer.getheader("Connection", "").lower() == "close":
            line.close()
        else:
            kept[url] = line
        return True


@pytest.fixture
def cluster(tmp_path: Path, redis_url: str) -> dict[str, str]:
    store = tmp_path / "store"
    store.mkdir()
    return {"ENGINESMITH_REDIS_URL": redis_url, "ENGINESMITH_STORE_URL": store.as_uri()}


def test_a_rolling_restart(
    cluster: dict[str, str], tmp_path: Path, redis_url: str, digits: dict[str, np.ndarray], tell: Tell
) -> None:
    with ExitStack() as opened, Balancer() as balancer:
        count = 0

        def replica() -> Service:
            nonlocal count
            count += 1
            made = start_service(tmp_path / f"replica{count}", **cluster)
            opened.callback(made.stop)
            return made

        replicas = [replica(), replica()]
        fields = {"redis_url": redis_url, "store": cluster["ENGINESMITH_STORE_URL"]}
        publish(replicas[0], networks.scaled(1), **fields)
        deploy(replicas[0], "web", "net@1")
        balancer.replicas = [r.url for r in replicas]
        with Client(replicas[0].url) as client:
            work.prepare(client, digits)
            long = client.jobs.submit("train", model="net@2", dataset="digits", epochs=400, batch_size=8).id
            until(lambda: len(client.jobs.get(long).history) > 1)
        until(lambda: balancer.answered > 100)
        for number in range(len(replicas)):
            old, new = replicas[number], replica()
            balancer.replicas.append(new.url)
            until(lambda: new.url in balancer.serving)  # noqa: B023
            old.process.send_signal(signal.SIGTERM)
            assert old.process.wait(120) == 0
            balancer.replicas.remove(old.url)
            balancer.serving.discard(old.url)
            replicas[number] = new
        with Client(replicas[0].url) as client:
            until(lambda: client.jobs.get(long).status == "running" and client.jobs.get(long).attempt >= 2)
            before = client.jobs.get(long).history
            until(lambda: len(client.jobs.get(long).history) > len(before))
            epochs = [row["epoch"] for row in client.jobs.get(long).history]
            assert epochs == list(range(1, len(epochs) + 1))
            client.jobs.cancel(long)
            until(lambda: client.jobs.get(long).status == "cancelled")
    assert balancer.failed == []
    tell(
        f"two apps with a worker each replaced one after the other under load: {balancer.answered} requests, none "
        f"failed; a training went on from its checkpoint, {len(before)} epochs in"
    )
