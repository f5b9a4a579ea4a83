"""The Open Inference Protocol over HTTP: what every route answers, and that errors are told as the protocol wants."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
import zlib
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from app.domain.deployments import Deployment
from app.domain.records import Tensor, now
from app.serving.lane import Lane
from app.storage.artifacts import Artifacts

from .conftest import Publish, Serve
from .test_deployments import put, settle
from .test_predict import lane, serve_lane
from .test_swaps import nothing_loads

X, Y = Tensor(name="x", shape=(-1, 3)), Tensor(name="y", shape=(-1, 3))
ONE = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
URL = "/v2/models/plain/infer"


@pytest.fixture
async def plain(app: FastAPI) -> Lane:
    return serve_lane(app, "plain", lane([X], [Y], labels=("a", "b", "c")))


def binary(values: np.ndarray, **fields: Any) -> tuple[bytes, dict[str, str]]:
    entry = {"name": "x", "shape": values.shape, "datatype": "FP32", "parameters": {"binary_data_size": values.nbytes}}
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}} | fields).encode()
    return head + values.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def answered(response: httpx.Response) -> tuple[dict[str, Any], bytes]:
    """(the JSON, the bytes behind it)."""
    assert response.status_code == 200, response.text
    length = int(response.headers.get("inference-header-content-length", len(response.content)))
    return json.loads(response.content[:length]), response.content[length:]


def refused(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"error"}
    found: str = response.json()["error"]
    return found


async def test_json_there_and_back(client: httpx.AsyncClient, plain: Lane) -> None:
    response = await client.post(URL, json={"id": "7", "inputs": [ONE]})
    assert response.json() == {
        "id": "7",
        "model_name": "plain",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}],
    }
    assert response.headers["content-type"] == "application/json"
    assert response.headers["enginesmith-model"] == "net@1"


async def test_bytes_there_and_back(client: httpx.AsyncClient, plain: Lane) -> None:
    values = np.array([[1.5, np.nan, np.inf], [0, -0.0, 3]], np.float32)
    body, headers = binary(values)
    response = await client.post(URL, content=body, headers=headers)
    told, data = answered(response)
    assert response.headers["content-type"] == "application/octet-stream"
    assert told["outputs"][0]["parameters"] == {"binary_data_size": 24}
    assert data == values.tobytes()


async def test_classes_with_labels(client: httpx.AsyncClient, plain: Lane) -> None:
    asked = {"inputs": [ONE], "outputs": [{"name": "y", "parameters": {"classification": 2}}]}
    told, _ = answered(await client.post(URL, json=asked))
    assert told["outputs"][0]["data"] == ["3.000000:2:c", "2.000000:1:b"]


async def test_strings_are_batched_like_numbers(app: FastAPI, client: httpx.AsyncClient) -> None:
    text = [Tensor(name=n, dtype="string", shape=(-1, 2)) for n in ("t", "u")]
    serve_lane(app, "text", lane(text[:1], text[1:], delay_s=0.05))
    asked = [{"name": "t", "shape": [1, 2], "datatype": "BYTES", "data": [f"größe {i}", ""]} for i in range(12)]
    answers = await asyncio.gather(*(client.post("/v2/models/text/infer", json={"inputs": [a]}) for a in asked))
    for number, response in enumerate(answers):
        assert response.json()["outputs"][0]["data"] == [f"größe {number}", ""]
    packed = b"".join(struct.pack("<I", len(e)) + e for e in (b"\xc3\xa9", b""))
    entry = {"name": "t", "shape": [1, 2], "datatype": "BYTES", "parameters": {"binary_data_size": len(packed)}}
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    told, data = answered(await client.post("/v2/models/text/infer", content=head + packed, headers=headers))
    assert data == packed
    assert told["outputs"][0]["datatype"] == "BYTES"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_compressed_both_ways(app: FastAPI, client: httpx.AsyncClient, coding: str) -> None:
    wide = [Tensor(name=n, shape=(-1, 10_000)) for n in ("x", "y")]
    serve_lane(app, "wide", lane(wide[:1], wide[1:]))
    values = np.zeros((1, 10_000), np.float32)
    body, headers = binary(values)
    packed = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
    headers |= {"Content-Encoding": coding, "Accept-Encoding": coding}
    response = await client.post("/v2/models/wide/infer", content=packed, headers=headers)
    assert response.headers["content-encoding"] == coding
    assert response.headers["vary"] == "Accept-Encoding"
    assert int(response.headers["content-length"]) < 2000
    assert answered(response)[1] == values.tobytes()  # httpx has unpacked it


async def test_small_answers_are_not_compressed(client: httpx.AsyncClient, plain: Lane) -> None:
    response = await client.post(URL, json={"inputs": [ONE]}, headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in response.headers


async def test_nor_are_large_ones_when_nobody_asks(app: FastAPI, client: httpx.AsyncClient) -> None:
    wide = [Tensor(name=n, shape=(-1, 10_000)) for n in ("x", "y")]
    serve_lane(app, "wide", lane(wide[:1], wide[1:]))
    body, headers = binary(np.zeros((1, 10_000), np.float32))
    response = await client.post("/v2/models/wide/infer", content=body, headers=headers | {"Accept-Encoding": ""})
    assert "content-encoding" not in response.headers


async def test_bombs_and_broken_and_unknown_encodings(client: httpx.AsyncClient, plain: Lane) -> None:
    async def sent(coding: str, body: bytes) -> httpx.Response:
        return await client.post(URL, content=body, headers={"Content-Encoding": coding})

    bomb = zlib.compress(bytes(65 * 1024 * 1024), 9)
    assert "unpacks to more than" in refused(await sent("deflate", bomb), 413)
    assert "no gzip" in refused(await sent("gzip", b"not at all"), 400)
    assert "in the middle" in refused(await sent("gzip", gzip.compress(b"x" * 999)[:-9]), 400)
    assert "'br' is not taken" in refused(await sent("br", b"x"), 415)
    assert "no valid JSON" in refused(await sent("gzip", gzip.compress(b"x")), 400)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"inputs": [ONE | {"shape": [1, 4], "data": [1, 2, 3, 4]}]}, "FP32 [-1, 3]"),
        ({"inputs": [ONE | {"datatype": "INT8"}]}, "FP32 [-1, 3]"),
        ({"inputs": [ONE | {"data": [1, 2, "3"]}]}, "holds strings"),
        (
            {"inputs": [ONE | {"data": [1, 2, "3"]}]},
            "row-major order, in one flat list or nested; the model takes x: FP32",
        ),
        ({"inputs": [ONE | {"shape": [5, 3], "data": list(range(15))}]}, "max_batch is 4"),
        ({"inputs": []}, "missing"),
        ({"inputs": [ONE], "outputs": [{"name": "z"}]}, "no output 'z'"),
    ],
)
async def test_what_is_wrong_is_a_400_that_says_what_was_expected(
    client: httpx.AsyncClient, plain: Lane, asked: dict[str, Any], told: str
) -> None:
    assert told in refused(await client.post(URL, json=asked), 400)


async def test_refusals_are_counted(client: httpx.AsyncClient, plain: Lane) -> None:
    await client.post(URL, json={"inputs": []})
    await client.post(URL, content=b"{")
    assert sum(plain.batcher.meter.failed.values()) == 2


async def test_names_and_methods_that_are_not_there(client: httpx.AsyncClient, plain: Lane) -> None:
    asked = {"inputs": [ONE]}
    assert "'nope'" in refused(await client.post("/v2/models/nope/infer", json=asked), 404)
    assert "'2'" in refused(await client.post("/v2/models/plain/versions/2/infer", json=asked), 404)
    answered(await client.post("/v2/models/plain/versions/1/infer", json=asked))
    for path in ("/v2/", "/v2/nope", "/v2/models/plain/nope", "/v2/models/plain/versions/1/nope", "/v2/models/"):
        refused(await client.get(path), 404)
    assert "POST" in refused(await client.get(URL), 405)
    for path in ("/v2", "/v2/health/live", "/v2/models/plain", "/v2/models/plain/config"):
        refused(await client.post(path), 405)
    for path in ("", "/ready", "/config", "/stats"):
        assert "nope" in refused(await client.get("/v2/models/nope" + path), 404)
        refused(await client.get("/v2/models/plain/versions/9" + path), 404)


@pytest.mark.parametrize("where", ["header", "parameter"])
async def test_deadlines(app: FastAPI, client: httpx.AsyncClient, where: str) -> None:
    serve_lane(app, "slow", lane([X], [Y], delay_s=0.5))
    asked: dict[str, Any] = {"inputs": [ONE]}
    headers = {"X-Timeout-Ms": "20"} if where == "header" else {}
    if where == "parameter":
        asked["parameters"] = {"timeout": 20_000}
    assert "deadline" in refused(await client.post("/v2/models/slow/infer", json=asked, headers=headers), 504)
    answered(await client.post("/v2/models/slow/infer", json={"inputs": [ONE], "parameters": {"timeout": 0}}))


async def test_timeouts_that_are_none(client: httpx.AsyncClient, plain: Lane) -> None:
    for given in ("soon", "-1", "nan", "inf"):
        told = refused(await client.post(URL, json={"inputs": [ONE]}, headers={"X-Timeout-Ms": given}), 400)
        assert "X-Timeout-Ms" in told
    refused(await client.post(URL, json={"inputs": [ONE]}, headers={"X-Timeout-Ms": "0"}), 504)
    for given in ("1e+06", "1e999", "9" * 400, "60000."):
        answered(await client.post(URL, json={"inputs": [ONE]}, headers={"X-Timeout-Ms": given}))
    huge = {"inputs": [ONE], "parameters": {"timeout": 2**63}}
    answered(await client.post(URL, json=huge))


async def test_large_bodies(app: FastAPI, client: httpx.AsyncClient) -> None:
    """Those that a thread decodes."""
    open_ended = [Tensor(name=n, shape=(-1, -1)) for n in ("x", "y")]
    serve_lane(app, "open", lane(open_ended[:1], open_ended[1:]))
    for count in (30_000, 500_000):
        values = np.arange(count, dtype=np.float32)[None] / 7
        entry = ONE | {"shape": values.shape, "data": values[0].tolist()}
        asked = {"inputs": [entry], "parameters": {"binary_data_output": True}}
        _, data = answered(await client.post("/v2/models/open/infer", json=asked))
        assert data == values.tobytes()
    text = [Tensor(name=n, dtype="string", shape=(-1, 1)) for n in ("t", "u")]
    serve_lane(app, "text", lane(text[:1], text[1:]))
    packed = struct.pack("<I", 200_000) + b"a" * 200_000
    entry = {"name": "t", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(packed)}}
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    _, data = answered(await client.post("/v2/models/text/infer", content=head + packed, headers=headers))
    assert data == packed


async def test_more_values_than_rows_can_have_are_refused_unread(client: httpx.AsyncClient, plain: Lane) -> None:
    body = b'{"inputs": [{"name": "x", "data": [' + b"1," * 500_000 + b"1]}]}"
    assert "max_batch" in refused(await client.post(URL, content=body), 400)
    headers = {"Inference-Header-Content-Length": str(len(body))}
    assert "max_batch" in refused(await client.post(URL, content=body, headers=headers), 400)


async def test_half_precision_out_travels_as_bytes_only(app: FastAPI, client: httpx.AsyncClient) -> None:
    half = [Tensor(name=n, dtype="float16", shape=(-1, 2)) for n in ("x", "y")]
    serve_lane(app, "half", lane(half[:1], half[1:]))
    values = np.array([[1.5, np.inf]], np.float16)
    entry = {"name": "x", "shape": [1, 2], "datatype": "FP16", "parameters": {"binary_data_size": 4}}
    for outputs, status in (([], 400), ([{"name": "y", "parameters": {"binary_data": True}}], 200)):
        head = json.dumps({"inputs": [entry], "outputs": outputs}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        response = await client.post("/v2/models/half/infer", content=head + values.tobytes(), headers=headers)
        assert response.status_code == status
    assert answered(response)[1] == values.tobytes()


async def test_server(client: httpx.AsyncClient, plain: Lane) -> None:
    told = (await client.get("/v2")).json()
    assert told["name"] == "enginesmith"
    assert {"binary_tensor_data", "classification", "statistics", "model_configuration"} <= set(told["extensions"])
    assert (await client.get("/v2/health/live")).json() == {"live": True}
    assert (await client.get("/v2/health/ready")).json() == {"ready": True}


async def test_ready_tells_the_truth(app: FastAPI, client: httpx.AsyncClient, plain: Lane) -> None:
    assert (await client.get("/v2/models/plain/ready")).json() == {"name": "plain", "ready": True}
    assert (await client.get("/v2/models/plain/versions/1/ready")).status_code == 200
    wanted = Deployment(name="lost", model="nothing@1", created_at=now(), updated_at=now())
    app.state.catalog.put_deployment(wanted, was_generation=None)
    await app.state.fleet.settled()
    response = await client.get("/v2/health/ready")
    assert response.status_code == 503
    assert response.json()["ready"] is False
    assert "lost" in response.json()["error"]
    refused(await client.get("/v2/models/lost/ready"), 503)
    assert (await client.get("/v2/models/plain/ready")).status_code == 200
    states = {m["name"]: m["state"] for m in (await client.post("/v2/repository/index")).json()}
    assert states["plain"] == "READY"
    assert states["lost"] in ("LOADING", "UNAVAILABLE")
    ready = (await client.post("/v2/repository/index", json={"ready": True})).json()
    assert [m["name"] for m in ready] == ["plain"]
    refused(await client.post("/v2/repository/index", json={"ready": 1}), 400)
    refused(await client.post("/v2/repository/index", content=b"{"), 400)


async def test_the_index_tells_what_loads_and_what_has_failed(
    app: FastAPI, client: httpx.AsyncClient, publish: Publish, artifacts: Artifacts
) -> None:
    publish(factor=1)
    publish(factor=2)
    artifacts.put_bytes(b"damaged", f"{publish(factor=3).folder}/model.onnx")
    await put(client, "net@1")

    async def told(**asked: bool) -> list[tuple[str, str, str]]:
        index = (await client.post("/v2/repository/index", json=asked)).json()
        return [(m["version"], m["state"], m["reason"]) for m in index if m["name"] == "web"]

    with nothing_loads(app.state.fleet):
        await client.put("/v1/deployments/web", json={"model": "net@2"})
        assert await told() == [("1", "READY", ""), ("2", "LOADING", "")]
        assert await told(ready=True) == [("1", "READY", "")]
    await settle(client, "ready")
    assert await told() == [("2", "READY", "")]
    failed = (await put(client, "net@3")).json()
    assert await told() == [("2", "READY", ""), ("3", "UNAVAILABLE", failed["error"]["detail"])]
    assert await told(ready=True) == [("2", "READY", "")]


async def test_what_sleeps_is_ready_and_a_question_does_not_wake_it(
    app: FastAPI, client: httpx.AsyncClient, plain: Lane
) -> None:
    place = app.state.fleet._places["plain"]
    place.served, place.main, place.asleep = place.wanted, None, True
    assert (await client.get("/v2/models/plain/ready")).status_code == 200
    assert (await client.get("/v2/models/plain/versions/1/ready")).status_code == 200
    refused(await client.get("/v2/models/plain/versions/2/ready"), 404)
    (told,) = (await client.post("/v2/repository/index")).json()
    assert told == {"name": "plain", "version": "1", "state": "READY", "reason": ""}
    assert len((await client.get("/v2/models/plain/stats")).json()["model_stats"]) == 1
    assert place.asleep


async def test_metadata_and_configuration(app: FastAPI, client: httpx.AsyncClient, plain: Lane) -> None:
    told = (await client.get("/v2/models/plain")).json()
    assert told == {
        "name": "plain",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }
    assert (await client.get("/v2/models/plain/versions/1")).json() == told
    config = (await client.get("/v2/models/plain/config")).json()
    assert config["max_batch_size"] == 4
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert config["input"][0]["dims"] == [3]
    assert config["output"][0]["dims"] == [3]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 0
    assert config["model_transaction_policy"] == {"decoupled": False}
    assert config["response_cache"] == {"enable": False}
    assert (await client.get("/v2/models/plain/versions/1/config")).json() == config


async def test_a_model_without_a_batch(app: FastAPI, client: httpx.AsyncClient) -> None:
    tensors = [Tensor(name=n, dtype="int64", shape=(), batch_axis=None) for n in ("n", "m")]
    serve_lane(app, "scalar", lane(tensors[:1], tensors[1:]))
    entry = {"name": "n", "shape": [], "datatype": "INT64", "data": [5]}
    told, _ = answered(await client.post("/v2/models/scalar/infer", json={"inputs": [entry]}))
    assert told["outputs"] == [{"name": "m", "datatype": "INT64", "shape": [], "data": [5]}]
    config = (await client.get("/v2/models/scalar/config")).json()
    assert config["max_batch_size"] == 0
    assert "dynamic_batching" not in config
    assert config["input"][0] | {"dims": [1], "reshape": {"shape": []}} == config["input"][0]


async def test_statistics(publish: Publish, app: FastAPI, client: httpx.AsyncClient) -> None:
    await client.put("/v1/deployments/a", json={"model": publish("a").ref}, headers={"Prefer": "wait=30"})
    for _ in range(3):
        entry = ONE | {"shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}
        answered(await client.post("/v2/models/a/infer", json={"inputs": [entry]}))
    assert (await client.post("/v2/models/a/infer", json={"inputs": []})).status_code == 400
    for path in ("/v2/models/a/stats", "/v2/models/a/versions/1/stats", "/v2/models/stats"):
        (told,) = (await client.get(path)).json()["model_stats"]
        assert (told["name"], told["version"]) == ("a", "1")
        assert told["inference_count"] == 6
        assert told["execution_count"] == 3
        assert told["last_inference"] > 1.6e12
        (batches,) = told["batch_stats"]
        assert (batches["batch_size"], batches["compute_infer"]["count"]) == (2, 3)
        stats = told["inference_stats"]
        assert stats["success"]["count"] == stats["compute_infer"]["count"] == 3
        assert stats["fail"]["count"] == 1
        assert stats["success"]["ns"] > stats["compute_infer"]["ns"] > 0


async def test_what_is_not_served_says_what_to_do(client: httpx.AsyncClient, plain: Lane) -> None:
    for change in ("load", "unload"):
        told = refused(await client.post(f"/v2/repository/models/plain/{change}", json={}), 501)
        assert "PUT /v1/deployments/plain" in told
    assert "shared memory" in refused(await client.get("/v2/systemsharedmemory/status"), 501)
    assert "shared memory" in refused(await client.post("/v2/cudasharedmemory/region/r/register", json={}), 501)
    for path in ("/v2/logging", "/v2/trace/setting", "/v2/models/plain/trace/setting"):
        refused(await client.get(path), 501)
        refused(await client.post(path, json={}), 501)


async def test_documented(client: httpx.AsyncClient, plain: Lane) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path in ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"):
        told = paths[path]["post"]
        assert told["requestBody"]["content"]["application/json"]["schema"]["required"] == ["inputs"]
        assert told["requestBody"]["content"]["application/json"]["examples"]
        assert {"200", "400", "404", "413", "415", "429", "503", "504"} <= told["responses"].keys()
    assert "/v2/models/{name}/config" in paths


async def test_a_swap_costs_no_request(publish: Publish, serve: Serve, settings: Any) -> None:
    first, second = publish("m", factor=1), publish("m", factor=2)
    async with serve(settings) as (_, client):
        await client.put("/v1/deployments/m", json={"model": first.ref}, headers={"Prefer": "wait=30"})
        done = asyncio.Event()
        seen: set[tuple[str, float]] = set()

        async def ask() -> None:
            while not done.is_set():
                told, _ = answered(await client.post("/v2/models/m/infer", json={"inputs": [ONE]}))
                seen.add((told["model_version"], told["outputs"][0]["data"][0]))

        tasks = [asyncio.create_task(ask()) for _ in range(4)]
        for wanted in (second, first, second):
            await client.put("/v1/deployments/m", json={"model": wanted.ref}, headers={"Prefer": "wait=30"})
            async with asyncio.timeout(30):
                while not any(version == str(wanted.version) for version, _ in seen):
                    await asyncio.sleep(0.01)
            seen -= {("1", 1.0), ("2", 2.0)}
        done.set()
        await asyncio.gather(*tasks)
        assert seen <= {("1", 1.0), ("2", 2.0)}
