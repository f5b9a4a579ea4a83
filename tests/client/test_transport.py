"""Retries, Retry-After, idempotency keys, and errors as exceptions."""

from __future__ import annotations

import socket

import pytest
from enginesmith import ApiError, Client, Unreachable
from enginesmith.transport import Transport, pause

from .stub import Answer, Stub, job

BUSY = Answer(429, {"status": 429, "code": "overloaded", "detail": "the queue is full"}, {"Retry-After": "7"})
BROKEN = Answer(503, {"status": 503, "code": "unavailable", "detail": "the store is away"})


def test_an_overloaded_service_is_asked_again_when_it_says(stub: Stub, client: Client, slept: list[float]) -> None:
    stub.on("GET", "/v1/jobs/j1", BUSY, Answer(200, job()))
    assert client.jobs.get("j1").id == "j1"
    assert slept == [7.0]


def test_patience_ends(stub: Stub, client: Client, slept: list[float]) -> None:
    stub.on("GET", "/v1/jobs/j1", BROKEN)
    with pytest.raises(ApiError, match="the store is away") as caught:
        client.jobs.get("j1")
    assert (caught.value.status, caught.value.code) == (503, "unavailable")
    assert len(stub.asked) == 5
    assert slept == sorted(slept)


def test_pauses_double_and_have_an_end() -> None:
    assert 0.15 <= pause(0) <= 0.25
    assert 1.2 <= pause(3) <= 2.0
    assert pause(30) <= 37.5
    assert pause(0, "3600") == 30
    assert pause(0, "Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_one_job_however_often_the_request_is_sent(stub: Stub, client: Client) -> None:
    stub.on("POST", "/v1/jobs", Answer(202, job(), drop_after=10), BROKEN, Answer(202, job()))
    client.jobs.submit("train", model="net", dataset="digits")
    keys = {asked.headers["Idempotency-Key"] for asked in stub.asked}
    assert len(stub.asked) == 3
    assert len(keys) == 1
    client.jobs.submit("train", model="net", dataset="digits")
    assert stub.asked[-1].headers["Idempotency-Key"] not in keys


def test_what_may_have_been_done_is_not_done_twice(stub: Stub, client: Client) -> None:
    stub.on("POST", "/v1/deployments/d/rollback", Answer(200, {"name": "d"}, drop_after=3))
    with pytest.raises(Unreachable):
        client.rollback("d")
    assert len(stub.asked) == 1


def test_the_key_is_sent_and_a_problem_is_shown_whole(stub: Stub, client: Client) -> None:
    errors = [{"loc": ["epochs"], "msg": "must be at least 1"}]
    body = {"status": 422, "code": "invalid", "detail": "1 field is wrong", "hint": "see /docs", "errors": errors}
    stub.on("POST", "/v1/jobs", Answer(422, body, {"Content-Type": "application/problem+json"}))
    with pytest.raises(ApiError) as caught:
        client.jobs.submit("train", epochs=0)
    assert stub.asked[0].headers["Authorization"] == "Bearer secret"
    assert str(caught.value) == "1 field is wrong (422 invalid)\n  epochs: must be at least 1\n  hint: see /docs"
    assert caught.value.raw == body


@pytest.mark.parametrize("body", [b"<h1>Bad gateway</h1>", b"", b"[1]", b'{"error": "Bad gateway"}'])
def test_an_error_that_is_no_problem_body(stub: Stub, client: Client, body: bytes) -> None:
    stub.on("GET", "/v1/jobs/j1", Answer(502, body, {"Content-Type": "text/html"}))
    with pytest.raises(ApiError) as caught:
        client.jobs.get("j1")
    assert caught.value.status == 502
    assert caught.value.detail


def test_nobody_there(slept: list[float]) -> None:
    with socket.socket() as held:  # bound, so that nobody else takes the port, and not listening
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with (
            Client(transport=Transport(url, retries=2, sleep=slept.append)) as client,
            pytest.raises(Unreachable) as caught,
        ):
            client.jobs.get("j1")
    assert len(slept) == 2
    assert url in str(caught.value)
    assert "enginesmith serve" in str(caught.value.hint)


def test_lists_go_on_to_the_last_page(stub: Stub, client: Client) -> None:
    first, second = (
        {"items": [{"name": "a"}, {"name": "b"}], "next_cursor": "2"},
        {"items": [{"name": "c"}], "next_cursor": None},
    )
    stub.on("GET", "/v1/models", Answer(200, first), Answer(200, second))
    assert [model.name for model in client.models.list()] == ["a", "b", "c"]
    assert stub.asked[1].query == "cursor=2"
    stub.on("GET", "/v1/models", Answer(200, first))
    assert [model.name for model in client.models.list(limit=1)] == ["a"]
