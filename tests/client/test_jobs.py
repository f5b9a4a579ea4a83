"""Waiting for jobs, and watching them over connections that break."""

from __future__ import annotations

import pytest
from enginesmith import Client, JobFailed, TimedOut
from enginesmith.jobs import read_events, split_lines

from .stub import DONE, LOST, Answer, Stub, job, sse

RUNNING = ("1-0", "state", {"status": "running"})
HALF = ("2-0", "progress", {"done": 5, "total": 10, "unit": "epochs"})
ENDED = ("3-0", "state", {"status": "succeeded"})


def test_fields_that_are_none_are_left_to_the_service(stub: Stub, client: Client) -> None:
    stub.on("POST", "/v1/jobs", Answer(202, job()))
    made = client.jobs.submit("train", model="net@1", dataset="digits", epochs=None, lr=0.1)
    assert stub.asked[0].json == {"kind": "train", "model": "net@1", "dataset": "digits", "lr": 0.1}
    assert made.status == "queued"
    assert not made.ended


def test_wait_asks_to_be_held(stub: Stub, client: Client) -> None:
    stub.on("GET", "/v1/jobs/j1", Answer(200, job("running")), Answer(200, DONE))
    assert client.jobs.wait("j1").result.model == "net@2"
    assert stub.asked[0].headers["Prefer"] == "wait=20"


def test_wait_ends_in_time(stub: Stub, client: Client) -> None:
    stub.on("GET", "/v1/jobs/j1", Answer(200, job("running")))
    with pytest.raises(TimedOut, match="still running"):
        client.wait("j1", timeout=0.3)


def test_a_failed_job_says_why(stub: Stub, client: Client) -> None:
    stub.on("GET", "/v1/jobs/j1", Answer(200, LOST))
    with pytest.raises(JobFailed) as caught:
        client.wait("j1")
    assert caught.value.job.id == "j1"
    assert caught.value.code == "bad_dataset"
    assert "x holds NaN" in str(caught.value)
    assert "hint: clean it" in str(caught.value)
    assert "x.3: NaN" in str(caught.value)
    assert client.wait("j1", check=False).status == "failed"


def test_a_cancelled_job_needs_no_reason(stub: Stub, client: Client) -> None:
    stub.on("GET", "/v1/jobs/j1", Answer(200, job("cancelled")))
    with pytest.raises(JobFailed) as caught:
        client.wait("j1")
    assert caught.value.code == "cancelled"
    assert "was cancelled" in str(caught.value)
    assert "reason" not in str(caught.value)
    assert "hint: enginesmith jobs retry j1" in str(caught.value)


def test_watch_tells_everything_once_over_a_broken_connection(stub: Stub, client: Client) -> None:
    broken = sse(RUNNING, HALF, ENDED)
    broken.drop_after = len(sse(RUNNING, HALF).bytes) + 12
    stub.on("GET", "/v1/jobs/j1/events", broken, sse(ENDED))
    stub.on("GET", "/v1/jobs/j1", Answer(200, DONE))
    seen = [(event.id, event.type) for event in client.jobs.watch("j1")]
    assert seen == [("1-0", "state"), ("2-0", "progress"), ("3-0", "state")]
    assert "Last-Event-ID" not in stub.asked[0].headers
    assert stub.asked[1].headers["Last-Event-ID"] == "2-0"


def test_watch_outlives_a_restart_of_the_service(stub: Stub, client: Client) -> None:
    away = Answer(503, {"status": 503, "code": "unavailable", "detail": "starting"})
    stub.on("GET", "/v1/jobs/j1/events", sse(RUNNING), away, sse(ENDED))
    stub.on("GET", "/v1/jobs/j1", Answer(200, job("running")), Answer(200, DONE))
    assert [event.id for event in client.jobs.watch("j1")] == ["1-0", "3-0"]


def test_watch_goes_on_when_a_failed_job_was_retried(stub: Stub, client: Client) -> None:
    stub.on("GET", "/v1/jobs/j1/events", sse(("1-0", "state", {"status": "failed"}), ("2-0", "state", {}), ENDED))
    stub.on("GET", "/v1/jobs/j1", Answer(200, DONE))
    assert [event.id for event in client.jobs.watch("j1")] == ["1-0", "2-0", "3-0"]


def test_watch_of_a_job_that_ended_long_ago(stub: Stub, client: Client) -> None:
    stub.on("GET", "/v1/jobs/j1/events", Answer(204))
    stub.on("GET", "/v1/jobs/j1", Answer(200, DONE))
    assert list(client.jobs.watch("j1")) == []


def test_event_streams_are_read_by_the_standard() -> None:
    text = ': a comment\n\nid: 7\r\nevent: log\r\ndata: {"text":\r\ndata: "two\u2028lines"}\r\n\r\n'
    text += "data:bare\n\ndata: never finished"
    events = list(read_events(split_lines(iter([text[:9], text[9:40], text[40:]]))))
    assert [(e.id, e.type, dict(e.data)) for e in events] == [
        ("7", "log", {"text": "two\u2028lines"}),
        ("7", "message", {"text": "bare"}),
    ]


def test_cancel_retry_report_and_the_menu(stub: Stub, client: Client) -> None:
    stub.on("POST", "/v1/jobs/j1/cancel", Answer(202, job("cancelling")))
    stub.on("POST", "/v1/jobs/j1/retry", Answer(202, job() | {"id": "j2"}))
    stub.on("GET", "/v1/jobs/j1/report", Answer(200, {"removed": 3}))
    stub.on("GET", "/v1/jobs/kinds", Answer(200, {"kinds": {"train": {}}}))
    assert client.jobs.cancel("j1").status == "cancelling"
    assert client.jobs.retry("j1").id == "j2"
    assert "Idempotency-Key" in stub.asked[-1].headers
    assert client.jobs.report("j1").removed == 3
    assert "train" in client.kinds().kinds
