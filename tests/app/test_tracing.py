from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import onnx
import pytest
from collector import Collector, Received
from enginesmith import Client
from onnx import TensorProto, helper
from running import start_service

from app import spans, tracing
from app.errors import Conflict
from app.main import create_app
from app.settings import Settings

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as started:
        yield started
        tracing.stop(5)


def started(settings: Settings, collector: Collector, **fields: object) -> None:
    tracing.start(settings.model_copy(update={"otlp_endpoint": collector.url, **fields}), "app")


def moments(**fields: float) -> SimpleNamespace:
    at = time.monotonic()
    given = {"came": at, "started": at + 0.001, "gathered": at + 0.002, "ended": at + 0.005, "answered": at + 0.006}
    return SimpleNamespace(**(given | {"rows": 8, "requests": 3} | fields))


def predict(stages: SimpleNamespace | None, status: int = 200, header: str | None = PARENT) -> None:
    at = time.monotonic()
    headers = {b"traceparent": header.encode()} if header else {}
    tracing.predicted(headers, "digits", "net@5", at - 0.01, at, stages, status, request_id="r1")


def named(found: list[Received], name: str) -> Received:
    (only,) = [span for span in found if span.name == name]
    return only


def test_off_by_default(settings: Settings) -> None:
    tracing.start(settings, "app")
    assert not tracing.on
    with tracing.span("x", root=True) as made:
        assert made is None
    assert tracing.traceparent() is None


def test_a_prediction_and_its_stages(settings: Settings, collector: Collector) -> None:
    started(settings, collector)
    predict(moments())
    found = collector.wait_for(lambda spans: len(spans) >= 5)
    server = named(found, "POST /predict/{deployment}")
    assert (server.trace, server.parent, server.kind, server.service) == (TRACE, SPAN, "server", "enginesmith-app")
    assert server.attributes == {
        "http.request.method": "POST",
        "http.route": "/predict/{deployment}",
        "http.response.status_code": 200,
        "enginesmith.request_id": "r1",
        "enginesmith.deployment": "digits",
        "enginesmith.model": "net@5",
        "enginesmith.version": "5",
        "enginesmith.batch.rows": 8,
        "enginesmith.batch.requests": 3,
    }
    parts = [named(found, name) for name in ("queue", "compute_input", "compute_infer", "compute_output")]
    assert {(p.trace, p.parent, p.kind) for p in parts} == {(TRACE, server.id, "internal")}
    assert parts[2].ended - parts[2].began == pytest.approx(3e6, rel=0.01)
    assert len({span.id for span in found}) == 5
    assert abs(server.ended - time.time_ns()) < 60e9


def test_what_was_not_reached_has_no_span(settings: Settings, collector: Collector) -> None:
    started(settings, collector)
    predict(None, 429)
    predict(moments(gathered=0, ended=0, answered=0, rows=0, requests=0), 504)
    found = collector.wait_for(lambda spans: len(spans) >= 3)
    tracing.stop(30)
    assert sorted(span.name for span in found) == ["POST /predict/{deployment}"] * 2 + ["queue"]
    assert [s.error for s in found if s.attributes.get("http.response.status_code") == 504] == ["HTTP 504"]
    assert [s.error for s in found if s.attributes.get("http.response.status_code") == 429] == [None]


def test_sampling(settings: Settings, collector: Collector) -> None:
    """The client's decision is obeyed; of the rest the share that was asked for is kept."""
    started(settings, collector, trace_ratio=0.0)
    predict(None, header=None)
    predict(None, header=f"00-{TRACE}-{SPAN}-00")
    predict(None, header=f"00-{TRACE}-{SPAN}-01")
    tracing.stop(30)
    assert [span.trace for span in collector.spans] == [TRACE]
    started(settings, collector, trace_ratio=0.5)
    for _ in range(400):
        predict(None, header=None)
    tracing.stop(30)
    assert 100 < len(collector.spans) - 1 < 300
    assert all(len(span.trace) == 32 and not span.parent for span in collector.spans[1:])


@pytest.mark.parametrize(
    "header",
    ["", "x", PARENT[:-1], PARENT.upper(), f"ff{PARENT[2:]}", f"{PARENT}-more", f"00-{'0' * 32}-{SPAN}-01",
     f"00-{TRACE}-{'0' * 16}-01", "00-" + "é" * 60],
)  # fmt: skip
def test_a_wrong_traceparent_begins_a_trace_of_its_own(header: str) -> None:
    assert tracing.continued(header) is None


def test_a_later_version_of_the_header_is_read() -> None:
    found = tracing.continued(f"01-{TRACE}-{SPAN}-03-more")
    assert found is not None
    assert found.sampled


async def test_requests_to_the_api(settings: Settings, collector: Collector) -> None:
    app = create_app(settings.model_copy(update={"otlp_endpoint": collector.url}))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        assert tracing.on
        await client.get("/v1/models/nope", headers={"traceparent": PARENT, "X-Request-Id": "abc"})
        await client.get("/healthz/live")
        await client.get("/v1/models")
    assert not tracing.on
    first, second = sorted(collector.spans, key=lambda span: span.began)  # sent when the app ended
    assert (first.name, first.trace, first.parent) == ("GET /v1/models/{name}", TRACE, SPAN)
    assert first.attributes["http.response.status_code"] == 404
    assert first.attributes["enginesmith.request_id"] == "abc"
    assert (second.name, second.parent, second.kind) == ("GET /v1/models", "", "server")


def test_spans_inside_one_another(settings: Settings, collector: Collector) -> None:
    started(settings, collector)

    def work() -> None:
        with tracing.span("job", "consumer", PARENT, root=True, a=1, b=None):
            tracing.phase("loading")
            with tracing.span("fetch", what="net@1"):
                pass
            tracing.phase("loading")
            tracing.phase("pruning")
            raise ValueError("oops")

    with pytest.raises(ValueError, match="oops"):
        work()
    tracing.stop(30)
    job = named(collector.spans, "job")
    assert (job.trace, job.parent, job.error, job.attributes) == (TRACE, SPAN, "ValueError: oops", {"a": 1})
    inner = [span for span in collector.spans if span is not job]
    assert [span.name for span in inner] == ["fetch", "loading", "pruning"]
    assert {(span.trace, span.parent) for span in inner} == {(TRACE, job.id)}


def test_a_dead_endpoint_is_said_once_and_costs_nothing(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening: refused
        port = taken.getsockname()[1]
        monkeypatch.setattr(spans, "TIMEOUT_S", 0.2)
        monkeypatch.setattr(spans, "_PAUSES_S", (0.01,))
        tracing.start(settings.model_copy(update={"otlp_endpoint": f"http://127.0.0.1:{port}"}), "app")
        sender = tracing._sender
        assert sender is not None
        until = time.monotonic() + 60
        while sender._failures < 3 and time.monotonic() < until:
            predict(moments())
            time.sleep(0.01)
        tracing.stop()
    assert sender._failures >= 3
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING and "traces do not reach" in r.message]
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1


def test_an_endpoint_that_does_not_answer_holds_nobody_up(
    settings: Settings, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "TIMEOUT_S", 100.0)
    collector.held.clear()
    started(settings, collector)
    predict(moments())
    collector.wait_for(lambda spans: spans)  # from here on the thread waits for an answer
    sender = tracing._sender
    assert sender is not None
    for _ in range(spans.QUEUE_MAX + 100):
        predict(None)
    assert sender.dropped == 100
    began = time.monotonic()
    tracing.stop(0.1)
    assert time.monotonic() - began < 30


def test_an_endpoint_is_checked_at_start(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in ("localhost:4318", "grpc://localhost:4317", "http://", "http://host:port"):
        with pytest.raises(Conflict, match="no URL"):
            create_app(settings.model_copy(update={"otlp_endpoint": bad}))
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(Conflict, match="not installed") as error:
        create_app(settings.model_copy(update={"otlp_endpoint": "http://localhost:4318"}))
    assert "pip install" in error.value.hint


def test_the_standard_variable_is_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "ENGINESMITH_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert Settings().otlp_endpoint is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://standard:4318")
    assert Settings().otlp_endpoint == "http://standard:4318"
    monkeypatch.setenv("ENGINESMITH_OTLP_ENDPOINT", "http://own:4318")
    assert Settings().otlp_endpoint == "http://own:4318"
    monkeypatch.setenv("ENGINESMITH_OTLP_ENDPOINT", "")
    assert not Settings().otlp_endpoint


def test_from_the_request_through_its_job(tmp_path: Path, collector: Collector) -> None:
    """Over real processes: the client's trace goes through the app into the worker."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "f"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [onnx.numpy_helper.from_array(np.float32(2), "f")],
    )
    file = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    service = start_service(tmp_path / "data", ENGINESMITH_OTLP_ENDPOINT=collector.url)
    try:
        with file.open("rb") as opened:
            answer = httpx.post(
                f"{service.url}/v1/models",
                files={"file": ("net.onnx", opened)},
                data={"manifest": '{"name": "net"}'},
                headers={"traceparent": PARENT},
                timeout=60,
            )
        assert answer.status_code == 202, answer.text
        assert "traceparent" not in answer.json()
        with Client(service.url) as client:
            job = client.jobs.wait(answer.json()["id"])
        assert job["status"] == "succeeded"
        found = collector.wait_for(lambda spans: any(span.name == "job import" for span in spans))
    finally:
        service.stop()
    found = [span for span in found if span.trace == TRACE]
    request, attempt = named(found, "POST /v1/models"), named(found, "job import")
    assert (request.parent, request.service) == (SPAN, "enginesmith-app")
    assert (attempt.parent, attempt.service, attempt.kind) == (request.id, "enginesmith-worker", "consumer")
    assert attempt.attributes["enginesmith.job.id"] == job["id"]
    assert attempt.error is None
    inside = [span.name for span in found if span.parent == attempt.id]
    assert {"starting", "fetching", "fetch", "loading", "publishing"} <= set(inside)
