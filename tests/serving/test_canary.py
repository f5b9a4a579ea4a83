"""Canaries: judged by what they answer, taken back by themselves, promoted without a reload."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.api.likeness import refuse_unlike
from app.domain.deployments import Canary
from app.domain.records import Made, Signature, Tensor, Version, now
from app.errors import BadTensor, DeadlineExceeded, Internal, Overloaded, Unavailable, Unprocessable
from app.serving.guard import MIN_REQUESTS, Verdict, Watch

from .conftest import Publish
from .test_deployments import answered, ask, put, settle

Shapes = tuple[tuple[str, str, tuple[int, ...]], ...]
BROKEN = Internal("x", code="engine_failed")


def watch(**bounds: Any) -> tuple[Watch, list[Verdict]]:
    found: list[Verdict] = []
    return Watch(Canary(model="m@2", percent=5, **bounds), found.append), found


def test_a_broken_error_rate_is_said_once() -> None:
    canary, found = watch(max_error_rate=0.1, min_requests=10)
    for _ in range(9):
        canary.ended(0.001, BROKEN)
    assert found == []  # too few to judge by
    for _ in range(5):
        canary.ended(0.001, BROKEN)
    assert [v.reason for v in found] == ["error_rate"]
    assert found[0].figures == {"requests": 10, "errors": 10, "error_rate": 1.0, "p99_ms": 1.0}
    assert found[0].detail == "10 of the newest 10 requests failed (100.0%), and max_error_rate is 0.1"
    assert canary.tripped


def test_at_the_bound_it_holds() -> None:
    canary, found = watch(max_error_rate=0.1, min_requests=10)
    for i in range(100):
        canary.ended(0.001, BROKEN if i % 10 == 9 else None)
    assert found == []
    canary.ended(0.001, BROKEN)
    assert [v.figures["errors"] for v in found] == [11]


def test_a_bound_of_zero_and_the_default_number_of_requests() -> None:
    canary, found = watch(max_error_rate=0)
    canary.ended(0.001, BROKEN)
    for _ in range(MIN_REQUESTS - 2):
        canary.ended(0.001)
    assert found == []
    canary.ended(0.001)  # a good one, and enough to judge by the one before
    assert [v.reason for v in found] == ["error_rate"]


def test_what_is_not_the_services_fault_does_not_count() -> None:
    canary, found = watch(max_error_rate=0, min_requests=1)
    taken_down = Unavailable("x", code="shutting_down")
    for error in (BadTensor("x"), Overloaded("x"), taken_down):
        canary.ended(0.001, error)
    assert (found, canary.figures()["requests"]) == ([], 0)
    canary.ended(0.001, RuntimeError("x"))
    assert [v.reason for v in found] == ["error_rate"]


def test_a_clients_own_deadline_is_no_error() -> None:
    canary, found = watch(max_error_rate=0, min_requests=1)
    for seconds in (0.000001, 0.001, 1.0):
        canary.ended(seconds, DeadlineExceeded("x"))
    assert (found, canary.figures()["requests"]) == ([], 0)
    canary.ended(1.0, DeadlineExceeded("x", code="engine_hung"))
    assert [v.reason for v in found] == ["error_rate"]


def test_a_deadline_that_passed_later_than_the_bound_is_a_slow_answer() -> None:
    canary, found = watch(max_error_rate=0, max_p99_ms=50, min_requests=2)
    for _ in range(100):
        canary.ended(0.050, DeadlineExceeded("x"))  # it may have been about to answer
    assert (found, canary.figures()["requests"]) == ([], 0)
    for _ in range(2):
        canary.ended(0.051, DeadlineExceeded("x"))
    assert [(v.reason, v.figures["errors"]) for v in found] == [("p99", 0)]


def test_a_refusal_of_what_the_main_version_answers_is_an_error() -> None:
    canary, found = watch(max_error_rate=0.5, min_requests=3)
    for _ in range(3):
        canary.blame()
    assert [v.figures["errors"] for v in found] == [3]


def test_a_broken_p99_by_two_slow_answers_at_the_least() -> None:
    canary, found = watch(max_p99_ms=50, min_requests=10)
    for _ in range(30):
        canary.ended(0.010)
    canary.ended(0.2)
    assert found == []
    canary.ended(0.3)
    assert [v.reason for v in found] == ["p99"]
    assert found[0].figures["p99_ms"] == 300.0
    assert "p99 of the newest 32 requests is 300 ms, and max_p99_ms is 50" in found[0].detail
    steady, found = watch(max_p99_ms=50, min_requests=10)
    for i in range(400):
        steady.ended(0.2 if i in (150, 350) else 0.010)
    assert found == []  # one in a hundred may


def test_only_the_newest_count() -> None:
    canary, found = watch(max_error_rate=0.5, max_p99_ms=50, min_requests=400)
    for _ in range(300):
        canary.ended(1.0, BROKEN)
    for _ in range(499):
        canary.ended(0.001)
    assert canary.figures() == {"requests": 500, "errors": 1, "error_rate": 0.002, "p99_ms": 1.0}
    canary, found = watch(max_error_rate=0.9, min_requests=1)
    for _ in range(5):
        canary.ended(0.001, None)
    for _ in range(1000):
        canary.ended(0.001, BROKEN)
    assert len(found) == 1


BOUNDS = {"max_error_rate": 0.2, "min_requests": 5}


async def test_a_deadline_too_short_for_any_version_says_nothing_of_the_canary(
    client: httpx.AsyncClient, publish: Publish
) -> None:
    publish(factor=1)
    publish(factor=2)
    canary = {"model": "net@2", "percent": 100, "max_error_rate": 0, "min_requests": 1}
    await put(client, "net@1", canary=canary)
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    for _ in range(5):
        late = await client.post("/predict/web", json={"inputs": [[1, 0, 0]]}, headers={"X-Timeout-Ms": "0.000001"})
        assert late.status_code == 504
        late = await client.post("/v2/models/web/infer", json={"inputs": [tensor], "parameters": {"timeout": 1}})
        assert late.status_code in (504, 200)  # one microsecond is much for some machines
    assert (await answered(client))[0] == "net@2"
    body = (await client.get("/v1/deployments/web")).json()
    assert (body["returned"], body["canary"]["model"]) == (None, "net@2")


async def test_what_only_the_canary_refuses_the_main_version_answers(
    app: FastAPI, client: httpx.AsyncClient, publish: Publish
) -> None:
    publish(factor=1)
    publish(factor=2)
    canary = {"model": "net@2", "percent": 100, "max_error_rate": 0.5, "min_requests": 3}
    await put(client, "net@1", canary=canary)
    lane = app.state.fleet.lane("web")
    lane.batcher.max_batch = 1  # as if its engine refused what the other's takes
    for _ in range(3):  # what both refuse is the client's mistake
        assert (await client.post("/predict/web", json={"inputs": [[1, 0]]})).status_code == 422
        refused = await client.post("/v2/models/web/infer", json={"inputs": []})
        assert refused.status_code == 400
    assert lane.watch.figures()["requests"] == 0
    for _ in range(2):
        found = (await client.post("/predict/web", json={"inputs": [[1, 0, 0]] * 2})).json()
        assert (found["model"], found["outputs"]["logits"]) == ("net@1", [[1, 0, 0]] * 2)
    pinned = {"inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1] * 6}]}
    assert (await client.post("/v2/models/web/versions/2/infer", json=pinned)).status_code == 400
    assert lane.watch.figures()["errors"] == 2
    found = (await client.post("/v2/models/web/infer", json=pinned)).json()
    assert (found["model_version"], found["outputs"][0]["data"]) == ("1", [1] * 6)
    async with asyncio.timeout(30):
        while (body := (await client.get("/v1/deployments/web")).json())["returned"] is None:
            await asyncio.sleep(0.02)
    assert (body["returned"]["reason"], body["returned"]["figures"]["errors"]) == ("error_rate", 3)


def signed(inputs: Shapes, outputs: Shapes = (("logits", "float32", (-1, 3)),), **fields: Any) -> Version:
    """A version of net whose tensors are (name, dtype, shape)."""
    tensors = {
        kind: tuple(Tensor(name=name, dtype=dtype, shape=shape) for name, dtype, shape in given)  # type: ignore[arg-type]
        for kind, given in (("inputs", inputs), ("outputs", outputs))
    }
    draft = {"name": "net", "version": 1, "format": "onnxruntime", "folder": "f", "files": {}, "bytes": 1}
    draft |= {"signature": Signature(**tensors), "made_by": Made(job="j", spec={}), "created_at": now()}
    return Version.model_validate(draft | fields)


X = ("x", "float32", (-1, 3))


@pytest.mark.parametrize(
    ("main", "other", "why"),
    [
        (signed((X,)), signed((X,)), None),
        (signed((X,)), signed((("x", "float32", (-1, -1)),)), None),
        (signed((("x", "float32", (-1, -1)),)), signed((X,)), "does not take every shape of 'x'"),
        (signed((X,)), signed((("x", "float32", (-1, 4)),)), "does not take every shape of 'x'"),
        (signed((X,)), signed((("x", "float32", (-1, 3, 1)),)), "does not take every shape of 'x'"),
        (signed((X,)), signed((("x", "float64", (-1, 3)),)), "takes 'x' as another dtype"),
        (signed((X,)), signed((("y", "float32", (-1, 3)),)), "has other inputs"),
        (signed((X,)), signed((X, ("y", "float32", (-1, 3)))), "has other inputs"),
        (signed((X,)), signed((X,), (("logits", "float32", (-1, 9)),)), None),
        (signed((X,)), signed((X,), (("scores", "float32", (-1, 3)),)), "has other outputs"),
        (signed((X,)), signed((X,), (("logits", "float16", (-1, 3)),)), "has other outputs"),
        (signed((X,), preprocess={"resize": 8}), signed((X,)), "takes no images"),
        (signed((X,)), signed((X,), preprocess={"resize": 8}), None),
        (signed((X,)), signed((X,), details={"max_batch": 8}), None),  # it is served with 64
        (
            signed((X,)),
            signed((X,), details={"max_batch": 8}, format="tensorrt"),
            "takes only 8 rows in a request, and",
        ),
        (signed((X,), details={"max_batch": 8}), signed((X,)), None),
    ],
)
def test_a_canary_takes_whatever_the_main_version_takes(main: Version, other: Version, why: str | None) -> None:
    if why is None:
        refuse_unlike(main, other, "canary", None)
        return
    with pytest.raises(Unprocessable, match=f"the canary net@1 {why}") as found:
        refuse_unlike(main, other, "canary", None)
    assert found.value.code == "canary_differs"
    for version in (main, other):  # both signatures are told
        told = version.signature.inputs[0]
        assert f"{told.name}: {told.dtype} {list(told.shape)}" in found.value.detail
    if "rows" in why:
        assert '"max_batch": 8' in found.value.hint
        refuse_unlike(main, other, "canary", 8)


async def test_a_canary_that_fails_is_taken_back(app: FastAPI, client: httpx.AsyncClient, publish: Publish) -> None:
    publish(factor=1)
    publish(factor=2, fragile=True)
    made = await put(client, "net@1", canary={"model": "net@2", "percent": 100} | BOUNDS)
    assert made.json()["canary"] == {"model": "net@2", "percent": 100} | BOUNDS
    assert made.json()["returned"] is None
    for _ in range(10):
        assert await answered(client) == ("net@2", 2.0)
        assert (await client.post("/predict/web", json={"inputs": [["a", 0, 0]]})).status_code == 422
    assert (await settle(client, "ready"))["canary"] is not None
    failed = 0
    while (response := await ask(client, value=200.0)).status_code != 200:
        assert (response.status_code, response.json()["code"]) == (500, "engine_failed")
        failed += 1
    assert failed == 3  # 3 of 13 is the first to break 0.2, and none after it is asked
    assert response.json()["model"] == "net@1"
    async with asyncio.timeout(30):
        while (body := (await client.get("/v1/deployments/web")).json())["canary"] or body["status"] != "ready":
            await asyncio.sleep(0.02)
    returned = body["returned"]
    assert (returned["model"], returned["reason"], returned["percent"]) == ("net@2", "error_rate", 100)
    assert returned["figures"]["errors"] == 3
    assert returned["figures"]["requests"] == 13
    assert returned["at"] == body["updated_at"]
    assert "max_error_rate is 0.2" in returned["detail"]
    assert (body["model"], body["previous"], body["generation"]) == ("net@1", None, 2)
    assert {(await answered(client))[0] for _ in range(20)} == {"net@1"}
    assert 'enginesmith_canary_returns_total{deployment="web"} 1' in (await client.get("/metrics")).text
    assert app.state.fleet.served("web") == ["1"]
    # The same main version again leaves the reason; a new canary clears it.
    assert (await put(client, "net@1")).json()["returned"] == returned
    again = (await put(client, "net@1", canary={"model": "net@2", "percent": 100} | BOUNDS)).json()
    assert (again["returned"], again["status"]) == (None, "ready")
    assert await answered(client) == ("net@2", 2.0)


async def test_a_canary_that_is_slow_is_taken_back(client: httpx.AsyncClient, publish: Publish) -> None:
    publish(factor=1)
    publish(factor=2)
    await put(client, "net@1", canary={"model": "net@2", "percent": 100, "max_p99_ms": 0.0001, "min_requests": 3})
    async with asyncio.timeout(30):
        while (await answered(client))[0] == "net@2":
            pass
        while (body := (await client.get("/v1/deployments/web")).json())["returned"] is None:
            await asyncio.sleep(0.02)
    assert (body["returned"]["reason"], body["canary"]) == ("p99", None)
    assert body["returned"]["figures"]["p99_ms"] > 0.0001


async def test_without_bounds_a_canary_stays(client: httpx.AsyncClient, publish: Publish) -> None:
    publish(factor=1)
    publish(factor=2, fragile=True)
    made = await put(client, "net@1", canary={"model": "net@2", "percent": 100})
    assert made.json()["canary"] == {"model": "net@2", "percent": 100}
    for _ in range(MIN_REQUESTS + 5):
        assert (await ask(client, value=200.0)).status_code == 500
    assert (await settle(client, "ready"))["canary"] == {"model": "net@2", "percent": 100}


async def test_a_canary_takes_as_many_rows_as_the_main_version(
    app: FastAPI, client: httpx.AsyncClient, publish: Publish
) -> None:
    publish(factor=1, details={"max_batch": 8})
    publish(factor=2, details={"max_batch": 2})
    part = {"model": "net@2", "percent": 100}
    assert (await put(client, "net@1", canary=part, shadow=part)).json()["status"] == "ready"
    found = (await client.post("/predict/web", json={"inputs": [[1, 0, 0]] * 8})).json()
    assert (found["model"], len(found["outputs"]["logits"])) == ("net@2", 8)
    assert [lane.max_batch for place in app.state.fleet.places() for lane in place.lanes] == [8, 8, 8]
    assert (await put(client, "net@2")).json()["max_batch"] == 2
    assert app.state.fleet.lane("web").max_batch == 2


async def test_promotion_loads_nothing(app: FastAPI, client: httpx.AsyncClient, publish: Publish) -> None:
    publish(factor=1)
    publish(factor=2)
    fleet = app.state.fleet
    await put(client, "net@1", canary={"model": "net@2", "percent": 0, "max_error_rate": 0.5})
    assert fleet.served("web") == ["1", "2"]
    canary = fleet.lane("web", "2")
    assert canary.version.ref == "net@2"
    assert (await fleet.find("web", "1")).version.ref == "net@1"
    for name, version in (("web", "3"), ("web", "x"), ("other", "1")):
        with pytest.raises(Exception, match=f"{version!r}|no deployment"):
            await fleet.find(name, version, patience_s=0)
    promoted = (await put(client, "net@2")).json()
    assert (promoted["status"], promoted["previous"], promoted["canary"]) == ("ready", "net@1", None)
    assert fleet.lane("web") is canary
    assert canary.watch is None
    assert await answered(client) == ("net@2", 2.0)


async def test_a_canary_that_does_not_load_keeps_nothing_from_serving(
    client: httpx.AsyncClient, publish: Publish, artifacts: Any
) -> None:
    publish(factor=1)
    broken = publish(factor=2)
    artifacts.put_bytes(b"damaged", f"{broken.folder}/model.onnx")
    made = (await put(client, "net@1", canary={"model": "net@2", "percent": 50})).json()
    assert (made["status"], made["error"]["code"]) == ("failed", "damaged_artifact")
    assert made["replicas"][0]["serving"] == "net@1"
    assert {(await answered(client))[0] for _ in range(10)} == {"net@1"}
    assert (await client.get("/healthz/ready")).status_code == 503
    assert (await client.get("/healthz/serving")).status_code == 200


async def test_canaries_that_cannot_be(client: httpx.AsyncClient, publish: Publish) -> None:
    publish()
    tensors = {"inputs": (Tensor(name="y", shape=(-1, 3)),), "outputs": (Tensor(name="logits", shape=(-1, 3)),)}
    publish("other", signature=Signature(**tensors))
    for role in ("canary", "shadow"):
        refused = await put(client, "net@1", **{role: {"model": "other@1", "percent": 5}})
        assert (refused.status_code, refused.json()["code"]) == (422, f"{role}_differs")
        missing = await put(client, "net@1", **{role: {"model": "net@9", "percent": 5}})
        assert missing.status_code == 404
    for part in (
        {"canary": {"model": "net@1", "percent": 5, "max_error_rate": 2}},
        {"canary": {"model": "net@1", "percent": 5, "max_p99_ms": 0}},
        {"canary": {"model": "net@1", "percent": 5, "min_requests": 0}},
        {"canary": {"model": "net@1", "percent": 5, "min_requests": 1.5}},
        {"canary": {"model": "net@1", "percent": 5, "unknown": 1}},
        {"shadow": {"model": "net@1", "percent": 101}},
        {"shadow": {"percent": 5}},
        {"run_timeout_s": 0},
    ):
        refused = await client.put("/v1/deployments/web", json={"model": "net@1"} | part)
        assert refused.status_code == 422, refused.text
        assert refused.json()["errors"]
    assert (await client.get("/v1/deployments")).json()["items"] == []
