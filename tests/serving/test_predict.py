"""POST /predict over HTTP: kinds of bodies and answers, limits, deadlines, and errors that say what was expected."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from app.domain.deployments import Deployment
from app.domain.records import Made, Signature, Tensor, Version, now
from app.metrics import Meter
from app.runtimes import Arrays
from app.runtimes.echo import EchoEngine
from app.serving.lane import Lane, Plan
from app.serving.place import Place
from app.settings import Settings

from .conftest import Serve

NPY, NPZ = "application/x-npy", "application/x-npz"


def lane(inputs: list[Tensor], outputs: list[Tensor], delay_s: float = 0.0, max_queue: int = 64, **fields: Any) -> Lane:
    """A lane over an echo, as no version of the store could be."""
    signature = Signature(inputs=tuple(inputs), outputs=tuple(outputs))
    facts: dict[str, Any] = {
        "name": "net", "version": 1, "format": "onnxruntime", "folder": "f", "files": {}, "bytes": 0,
        "signature": signature, "made_by": Made(job="j", spec={}), "created_at": now(), "details": {"max_batch": 4},
    }  # fmt: skip
    version = Version.model_validate(facts | fields)
    engine = EchoEngine(signature, delay_s=delay_s)
    return Lane(Plan(version.ref, 1, None, 0, max_queue), version, engine, Meter("m", "1"))


def serve_lane(app: FastAPI, name: str, made: Lane) -> Lane:
    wanted = Deployment(name=name, model="net@1", created_at=now(), updated_at=now())
    app.state.catalog.put_deployment(wanted, was_generation=None)
    place = Place(wanted)
    place.tried, place.main, place.status = wanted, made, "ready"
    app.state.fleet._places[name] = place
    return made


X, Y = Tensor(name="x", shape=(-1, 3)), Tensor(name="y", shape=(-1, 3))


@pytest.fixture
async def plain(app: FastAPI) -> Lane:
    return serve_lane(app, "plain", lane([X], [Y]))


@pytest.fixture
async def several(app: FastAPI) -> Lane:
    sr = Tensor(name="sr", dtype="int64", shape=(), batch_axis=None)
    return serve_lane(app, "several", lane([X, sr], [Y, Tensor(name="rate", dtype="int64", shape=(), batch_axis=None)]))


@pytest.fixture
async def picture(app: FastAPI) -> Lane:
    shape = (-1, 1, 2, 2)
    made = lane(
        [Tensor(name="x", shape=shape)], [Tensor(name="y", shape=shape)], preprocess={"resize": [2, 2], "channels": 1}
    )
    return serve_lane(app, "picture", made)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def image(value: int, format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("L", (8, 8), value).save(stream, format)
    return stream.getvalue()


async def test_json(client: httpx.AsyncClient, plain: Lane) -> None:
    response = await client.post("/predict/plain", json={"inputs": [[1, 2, 3]]})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["enginesmith-model"] == "net@1"
    assert response.json() == {"model": "net@1", "outputs": {"y": [[1, 2, 3]]}}


async def test_npy_in_and_out(client: httpx.AsyncClient, plain: Lane) -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    response = await client.post("/predict/plain", content=npy(x), headers={"Content-Type": NPY})
    assert response.headers["content-type"] == NPY
    np.testing.assert_array_equal(np.load(io.BytesIO(response.content)), x)
    headers = {"Content-Type": NPY, "Accept": "application/json"}
    response = await client.post("/predict/plain", content=npy(x), headers=headers)
    assert response.json()["outputs"]["y"] == x.tolist()
    response = await client.post("/predict/plain", json={"inputs": x.tolist()}, headers={"Accept": NPZ})
    assert np.load(io.BytesIO(response.content))["y"].tolist() == x.tolist()


async def test_npz_with_a_scalar(client: httpx.AsyncClient, several: Lane) -> None:
    stream = io.BytesIO()
    np.savez(stream, x=np.ones((2, 3), np.float32), sr=np.array(16000))
    response = await client.post("/predict/several", content=stream.getvalue(), headers={"Content-Type": NPZ})
    assert response.headers["content-type"] == NPZ
    found = np.load(io.BytesIO(response.content))
    assert found["rate"] == 16000
    response = await client.post("/predict/several", json={"inputs": {"x": [[1, 2, 3]], "sr": 8000}})
    assert response.json()["outputs"] == {"y": [[1, 2, 3]], "rate": 8000}
    headers = {"Content-Type": NPZ, "Accept": NPY}
    refused = await client.post("/predict/several", content=stream.getvalue(), headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (406, "not_acceptable")
    chosen = await client.post("/predict/several?outputs=rate", content=stream.getvalue(), headers=headers)
    assert np.load(io.BytesIO(chosen.content)) == 16000


async def test_images(client: httpx.AsyncClient, picture: Lane) -> None:
    response = await client.post("/predict/picture", content=image(255), headers={"Content-Type": "image/png"})
    assert response.json()["outputs"]["y"] == [[[[1, 1], [1, 1]]]]
    response = await client.post("/predict/picture", content=image(0, "JPEG"), headers={"Content-Type": "image/jpeg"})
    assert response.json()["outputs"]["y"] == [[[[0, 0], [0, 0]]]]
    files = [("file", ("a.png", image(255), "image/png")), ("file", ("b.jpg", image(0, "JPEG"), "image/jpeg"))]
    response = await client.post("/predict/picture", files=files)
    assert [row[0][0][0] for row in response.json()["outputs"]["y"]] == [1, 0]
    too_many = await client.post("/predict/picture", files=[files[0]] * 5)
    assert (too_many.status_code, "max_batch is 4" in too_many.json()["detail"]) == (422, True)
    broken = await client.post("/predict/picture", files=[files[0], ("file", ("c.png", b"junk", "image/png"))])
    assert (broken.status_code, broken.json()["detail"][:8]) == (422, "image 1:")
    for content, kind in ((b"", "multipart/form-data; boundary=x"), (b"junk", "multipart/form-data")):
        refused = await client.post("/predict/picture", content=content, headers={"Content-Type": kind})
        assert refused.status_code in (400, 422)
    field = await client.post("/predict/picture", data={"a": "b"}, files=files[:1])
    assert field.status_code == 422


@pytest.mark.parametrize(
    ("content", "headers", "status", "said"),
    [
        (b'{"inputs": [[1, 2]]}', {}, 422, "must be float32 [-1, 3], and is [1, 2]"),
        (b'{"inputs": [[1, 2, NaN]]}', {}, 422, "input 'x' holds NaN at [0, 2]"),
        (
            b'{"inputs": [[1,2,3],[1,2,3],[1,2,3],[1,2,3],[1,2,3]]}',
            {},
            422,
            "5 rows in one request, and max_batch is 4",
        ),
        (b'{"inputs": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", {}, 422, "nested too deep"),
        (b"{", {}, 400, "no valid JSON"),
        (b"", {}, 400, "no valid JSON"),
        (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "takes application/json"),
        (image(0), {"Content-Type": "image/png"}, 415, "no preprocess"),
        (b"", {"Content-Encoding": "gzip"}, 415, "compressed"),
        (b'{"inputs": [[1, 2, 3]]}', {"Accept": "text/html"}, 406, "text/html"),
        (b'{"inputs": [[1, 2, 3]]}', {"X-Timeout-Ms": "soon"}, 422, "X-Timeout-Ms"),
        (b'{"inputs": [[1, 2, 3]]}', {"X-Timeout-Ms": "-1"}, 422, "X-Timeout-Ms"),
        (b'{"inputs": [[1, 2, 3]]}', {"X-Timeout-Ms": "nan"}, 422, "X-Timeout-Ms"),
        (b'{"inputs": [[1, 2, 3]]}', {"X-Timeout-Ms": "1_000"}, 422, "X-Timeout-Ms"),
        (b'{"inputs": [[1, 2, 3]]}', {"X-Timeout-Ms": "1e"}, 422, "X-Timeout-Ms"),
        (b'{"inputs": [[1, 2, 3]]}', {"X-Timeout-Ms": "0"}, 504, "deadline"),
    ],
)
async def test_problems(
    client: httpx.AsyncClient, plain: Lane, content: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    headers = {"Content-Type": "application/json"} | headers
    response = await client.post("/predict/plain", content=content, headers=headers)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert said in body["detail"]
    assert body["instance"] == "/predict/plain"
    if status == 422:
        assert [(type(e["loc"]), e["msg"]) for e in body["errors"]] == [(list, body["detail"])]
    assert plain.batcher.engine.seen == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("content", "query", "loc"),
    [
        (b'{"inputs": [[1, 2]]}', "", ["inputs", "x"]),
        (b'{"inputs": {"x": [["a", 2, 3]]}}', "", ["inputs", "x"]),
        (b'{"inputs": {"z": [[1, 2, 3]]}}', "", ["inputs"]),
        (b'{"inputs": [[1, 2, 3]], "top_k": 0}', "", ["top_k"]),
        (b'{"inputs": [[1, 2, 3]], "outputs": ["z"]}', "", ["outputs"]),
        (b'{"inputs": [[1, 2, 3]], "colour": 1}', "", ["colour"]),
        (None, "", ["inputs", "x"]),
        (None, "?top_k=1_0", ["top_k"]),
        (None, "?top_k=%D9%A3", ["top_k"]),  # a three in Arabic
    ],
)
async def test_an_error_says_where(
    client: httpx.AsyncClient, plain: Lane, content: bytes | None, query: str, loc: list[str]
) -> None:
    kind = "application/json" if content else NPY
    content = content or npy(np.zeros((1, 3), np.float32 if query else np.int32))
    response = await client.post(f"/predict/plain{query}", content=content, headers={"Content-Type": kind})
    assert response.status_code == 422
    assert [e["loc"] for e in response.json()["errors"]] == [loc]


async def test_hints_can_be_followed(app: FastAPI, client: httpx.AsyncClient, picture: Lane) -> None:
    serve_lane(app, "text", lane([Tensor(name="t", dtype="string", shape=(-1,))], [Y]))
    content = npy(np.array(["a", "b"]))
    refused = (await client.post("/predict/text", content=content, headers={"Content-Type": NPY})).json()
    assert (refused["status"], "application/json" in refused["hint"]) == (422, True)
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    refused = (await client.post("/predict/picture", content=b"--x--\r\n", headers=kind)).json()
    assert ("no image" in refused["detail"], "-F file=@" in refused["hint"]) == (True, True)


async def test_what_an_npz_unpacks_to_counts_with_all_bodies(settings: Settings, serve: Serve) -> None:
    bounds = {"max_predict_bytes": 4_000_000, "max_bodies_bytes": 4_000_000}
    async with serve(settings.model_copy(update=bounds)) as (app, client):
        plain = lane([X], [Y])
        gated = Gated(plain.signature)
        serve_lane(app, "plain", Lane(plain.plan, plain.version, gated, Meter("m", "1")))
        flights = app.hot._flights  # type: ignore[attr-defined]
        stream = io.BytesIO()
        np.savez_compressed(stream, x=np.zeros((4, 3), np.float32))
        small = client.post("/predict/plain", content=stream.getvalue(), headers={"Content-Type": NPZ})
        running = asyncio.create_task(small)
        await until(lambda: gated.begun > 0)
        assert flights.held == len(stream.getvalue()) + 128 + 48
        stream = io.BytesIO()
        np.savez_compressed(stream, x=np.zeros((330_000, 3), np.float32))
        flights.held += 1_000_000  # others
        refused = await client.post("/predict/plain", content=stream.getvalue(), headers={"Content-Type": NPZ})
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_bytes")
        flights.held -= 1_000_000
        gated.gate.set()
        assert (await running).status_code == 200
        assert flights.held == 0
        await plain.close(1)


async def test_an_unknown_deployment(client: httpx.AsyncClient) -> None:
    response = await client.post("/predict/nothing", json={"inputs": [1]})
    assert (response.status_code, response.json()["code"]) == (404, "deployment_not_found")
    assert (await client.get("/predict/nothing")).status_code == 405


async def test_a_body_over_the_limit(settings: Settings, serve: Serve) -> None:
    async with serve(settings.model_copy(update={"max_predict_bytes": 1000})) as (app, client):
        serve_lane(app, "plain", lane([X], [Y]))
        response = await client.post("/predict/plain", json={"inputs": [[1.0] * 1000]})
        assert response.status_code == 413


class Gated(EchoEngine):
    """An echo whose runs wait until the test opens the gate."""

    def __init__(self, signature: Signature) -> None:
        super().__init__(signature)
        self.gate = threading.Event()
        self.begun = 0

    def infer(self, inputs: Arrays) -> dict[str, Any]:
        self.begun += 1
        assert self.gate.wait(60)
        return super().infer(inputs)


@pytest.fixture
async def gated(app: FastAPI) -> AsyncIterator[Gated]:
    """Behind `slow`: one row at a time, and two may wait."""
    plain = lane([X], [Y], max_queue=2, details={"max_batch": 1})
    engine = Gated(plain.signature)
    serve_lane(app, "slow", Lane(plain.plan, plain.version, engine, Meter("m", "1")))
    await plain.close(1)
    yield engine
    engine.gate.set()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


async def test_a_deadline_in_the_queue(app: FastAPI, client: httpx.AsyncClient, gated: Gated) -> None:
    batcher = app.state.fleet.lane("slow").batcher
    first = asyncio.create_task(client.post("/predict/slow", json={"inputs": [[1, 2, 3]]}))
    await until(lambda: gated.begun == 1)
    second = asyncio.create_task(client.post("/predict/slow", json={"inputs": [[1, 2, 3]]}))
    await until(lambda: batcher.waiting_rows == 1)
    late = await client.post("/predict/slow", json={"inputs": [[1, 2, 3]]}, headers={"X-Timeout-Ms": "50"})
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    gated.gate.set()
    assert [(await first).status_code, (await second).status_code] == [200, 200]
    assert gated.seen == [1, 1]


async def test_a_full_queue(app: FastAPI, client: httpx.AsyncClient, gated: Gated) -> None:
    posts = [asyncio.create_task(client.post("/predict/slow", json={"inputs": [[1, 2, 3]]}))]
    await until(lambda: gated.begun == 1)
    posts += [asyncio.create_task(client.post("/predict/slow", json={"inputs": [[1, 2, 3]]})) for _ in range(7)]
    await until(lambda: sum(post.done() for post in posts) >= 5)
    headers = {"Content-Type": "application/json"}
    junk = await client.post("/predict/slow", content=b"{", headers=headers)  # not even looked at
    assert junk.status_code == 429
    gated.gate.set()
    responses = await asyncio.gather(*posts)
    refused = [r for r in responses if r.status_code == 429]
    assert sorted(r.status_code for r in responses) == [200] * 3 + [429] * 5
    assert refused[0].headers["content-type"] == "application/problem+json"
    assert int(refused[0].headers["retry-after"]) >= 1


async def test_the_service_stops_and_everybody_is_answered(
    app: FastAPI, client: httpx.AsyncClient, gated: Gated
) -> None:
    batcher = app.state.fleet.lane("slow").batcher
    posts = [asyncio.create_task(client.post("/predict/slow", json={"inputs": [[1, 2, 3]]}))]
    await until(lambda: gated.begun == 1)
    posts += [asyncio.create_task(client.post("/predict/slow", json={"inputs": [[1, 2, 3]]})) for _ in range(2)]
    await until(lambda: batcher.waiting_rows == 2)
    stopping = asyncio.create_task(app.state.fleet.stop())
    gated.gate.set()
    await stopping
    assert [(await post).status_code for post in posts] == [200] * 3


async def test_a_header_that_was_seen_before_is_not_taken_for_another(client: httpx.AsyncClient, plain: Lane) -> None:
    x = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    zeros = np.zeros_like(x)
    for array in (zeros.astype(">f4"), x.astype(">f4"), zeros, x, np.asfortranarray(x), x[:1], x, x.T.copy().T):
        for _ in range(2):
            headers = {"Content-Type": NPY, "Accept": "application/json"}
            response = await client.post("/predict/plain", content=npy(array), headers=headers)
            assert response.json()["outputs"]["y"] == array.tolist()
    longer = npy(x) + b"\0\0\0\0"
    assert (await client.post("/predict/plain", content=longer, headers={"Content-Type": NPY})).status_code == 400
    x[1, 1] = np.nan
    refused = await client.post("/predict/plain", content=npy(x), headers={"Content-Type": NPY})
    assert (refused.status_code, refused.json()["code"]) == (422, "not_finite")


async def test_openapi_shows_examples(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    content = paths["/predict/{deployment}"]["post"]["requestBody"]["content"]
    assert {"application/json", NPY, NPZ, "image/jpeg", "image/png", "multipart/form-data"} <= content.keys()
    assert content["application/json"]["examples"]
    assert paths["/v1/deployments/{name}"]["put"]["requestBody"]["content"]["application/json"]["examples"]
