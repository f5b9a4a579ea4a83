"""`serve --http-processes 2`: real processes behind one port; any of them may be killed."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import psutil
import pytest
from collector import Collector
from prometheus_client.parser import text_string_to_metric_families
from running import Service, start_service

from app.embedded import url_of
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog

Publish = Callable[..., object]
BODY = {"inputs": [[1, 2, 3]]}


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Service]:
    started = start_service(
        tmp_path_factory.mktemp("fronts"),
        workers=0,
        arguments=("--http-processes", "2"),
        ENGINESMITH_OTLP_ENDPOINT=collector.url,
    )
    yield started
    assert started.stop() == 0


@pytest.fixture
def settings(service: Service) -> Settings:
    """Those of the service: what `publish` publishes is published there."""
    return Settings(data=service.data, redis_url=url_of(service.data))


@pytest.fixture
def artifacts(settings: Settings) -> Artifacts:
    return Artifacts(settings.artifacts_url)


@pytest.fixture
def catalog(settings: Settings) -> Catalog:
    assert settings.redis_url is not None
    return Catalog.open(settings, settings.redis_url, patience_s=10)


def until(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not true():
        assert time.monotonic() < ends, "it took too long"
        time.sleep(0.05)


def children(service: Service, word: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(service.process.pid).children():
        with contextlib.suppress(psutil.Error):  # one that has just ended
            if word in process.cmdline()[3:4]:
                found.append(process)
    return found


def served(service: Service, path: str = "/predict/fronts") -> int:
    try:
        return httpx.post(service.url + path, json=BODY, timeout=30).status_code
    except httpx.TransportError:  # the process that had the connection has just been killed
        return 0


def counted(service: Service) -> float:
    text = httpx.get(service.url + "/metrics", timeout=30).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "enginesmith_http_requests_total" and sample.labels.get("route") == "/predict/{deployment}"
    )


def test_a_trace_goes_through_both_processes(service: Service, publish: Publish, collector: Collector) -> None:
    publish("traced")
    deployment = f"{service.url}/v1/deployments/traced"
    httpx.put(deployment, json={"model": "traced@1"}, headers={"Prefer": "wait=60"}, timeout=90).raise_for_status()
    given = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    httpx.post(f"{service.url}/predict/traced", json=BODY, headers=given, timeout=30).raise_for_status()
    spans = collector.wait_for(lambda spans: sum(s.trace == TRACE for s in spans) >= 5)
    whole, *stages = sorted((s for s in spans if s.trace == TRACE), key=lambda s: (s.began, -s.ended))
    assert (whole.kind, whole.attributes["enginesmith.batch.rows"]) == ("server", 1)
    assert {s.parent for s in stages} == {whole.id}
    names = [s.name for s in sorted(stages, key=lambda s: (s.began, s.ended))]
    assert names == ["queue", "compute_input", "compute_infer", "compute_output"]
    assert all(whole.began <= s.began <= s.ended <= whole.ended for s in stages)
    httpx.delete(deployment, timeout=30).raise_for_status()


def test_several_processes_answer_as_one(service: Service, publish: Publish) -> None:
    publish("fronts", factor=3.0)
    made = httpx.put(
        f"{service.url}/v1/deployments/fronts", json={"model": "fronts@1"}, headers={"Prefer": "wait=60"}, timeout=90
    ).json()
    assert made["status"] == "ready"
    assert len(children(service, "http")) == 2
    assert len(children(service, "engines")) == 1
    before = counted(service)
    for _ in range(40):  # a connection each, so both have some
        answer = httpx.post(f"{service.url}/predict/fronts", json=BODY, timeout=30)
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose(answer.json()["outputs"]["logits"], [[3, 6, 9]])
    assert counted(service) == before + 40
    metrics = httpx.get(f"{service.url}/metrics", timeout=30).text
    assert 'nv_inference_request_success{model="fronts",version="1"} 40' in metrics
    assert httpx.get(f"{service.url}/healthz/ready", timeout=30).json()["deployments"] == ["fronts"]
    assert httpx.get(f"{service.url}/v2/models/fronts", timeout=30).json()["versions"] == ["1"]

    # A wrong request is counted where the engines are.
    assert httpx.post(f"{service.url}/predict/fronts", json={"inputs": [["a"]]}, timeout=30).status_code == 422
    until(lambda: 'reason="OTHER"} 1' in httpx.get(f"{service.url}/metrics", timeout=30).text)

    # One front dies: the other answers, and it comes back.
    victim = children(service, "http")[0]
    victim.send_signal(signal.SIGKILL)
    until(lambda: victim not in children(service, "http") and len(children(service, "http")) == 2)
    until(lambda: all(served(service) == 200 for _ in range(20)))

    # The engines die: 503 while they are away, and then everything is as it was, with no hand from anyone.
    children(service, "engines")[0].send_signal(signal.SIGKILL)
    seen = set()
    until(lambda: bool(seen.add(served(service)) or 503 in seen))  # type: ignore[func-returns-value]
    until(lambda: all(served(service) == 200 for _ in range(20)))
    assert seen <= {200, 503}
