"""Other people's clients of the Open Inference Protocol, unchanged, over real HTTP: tritonclient and kserve."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import ml_dtypes  # comes with tritonclient
import numpy as np
import onnx
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from onnx import TensorProto as T
from onnx import helper
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from app import http, runtimes
from app.domain.records import Made, Signature, Tensor, Version, now
from app.embedded import EmbeddedStore
from app.main import create_app
from app.runtimes import BuildOptions
from app.settings import Settings
from app.storage import registry
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog

KSERVE = Path(__file__).with_name("kserve_client.py")
DTYPES = {
    "bool": T.BOOL, "uint8": T.UINT8, "uint16": T.UINT16, "uint32": T.UINT32, "uint64": T.UINT64, "int8": T.INT8,
    "int16": T.INT16, "int32": T.INT32, "int64": T.INT64, "float32": T.FLOAT, "float64": T.DOUBLE,
}  # fmt: skip
WIDE = 5000


def graph(name: str) -> tuple[list[Any], list[Tensor], list[Tensor], dict[str, np.ndarray]]:
    """nodes, inputs, outputs and constants of a small model."""
    node = helper.make_node
    if name == "net":
        nodes = [node("Mul", ["x", "two"], ["logits"]), node("ReduceSum", ["x", "axes"], ["total"], keepdims=1)]
        outputs = [Tensor(name="logits", shape=(-1, 3)), Tensor(name="total", shape=(-1, 1))]
        constants = {"two": np.array(2, np.float32), "axes": np.array([1], np.int64)}
        return nodes, [Tensor(name="x", shape=(-1, 3))], outputs, constants
    if name == "text":
        tensors = [Tensor(name=n, dtype="string", shape=(-1, 2)) for n in ("t", "u")]
        return [node("StringConcat", ["t", "t"], ["u"])], tensors[:1], tensors[1:], {}
    if name == "half":
        tensors = [Tensor(name=n, dtype="float16", shape=(-1, 2)) for n in ("x", "y")]
        return [node("Identity", ["x"], ["y"])], tensors[:1], tensors[1:], {}
    if name == "brain":
        tensors = [Tensor(name=n, dtype="bfloat16", shape=(-1, 2)) for n in ("x", "y")]
        return [node("Identity", ["x"], ["y"])], tensors[:1], tensors[1:], {}
    if name == "wide":
        tensors = [Tensor(name=n, shape=(-1, WIDE)) for n in ("x", "y")]
        return [node("Identity", ["x"], ["y"])], tensors[:1], tensors[1:], {}
    inputs = [Tensor(name=d, dtype=d, shape=(-1, 2)) for d in DTYPES]  # type: ignore[arg-type]
    outputs = [Tensor(name=f"{d}_out", dtype=d, shape=(-1, 2)) for d in DTYPES]  # type: ignore[arg-type]
    return [node("Identity", [d], [f"{d}_out"]) for d in DTYPES], inputs, outputs, {}


def publish(name: str, folder: Path, artifacts: Artifacts, catalog: Catalog) -> Version:
    nodes, inputs, outputs, constants = graph(name)
    codes = DTYPES | {"string": T.STRING, "float16": T.FLOAT16, "bfloat16": T.BFLOAT16}

    def said(tensors: list[Tensor]) -> list[Any]:
        return [helper.make_tensor_value_info(t.name, codes[t.dtype], ["N", *t.shape[1:]]) for t in tensors]

    kept = [onnx.numpy_helper.from_array(value, key) for key, value in constants.items()]
    made = helper.make_graph(nodes, "g", said(inputs), said(outputs), kept)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    source, engine = folder / f"{name}.onnx", folder / name
    source.write_bytes(model.SerializeToString())
    engine.mkdir()
    built_for = runtimes.get("onnxruntime").build(source, engine, BuildOptions(), lambda share, phase: None)
    prefix = f"models/{name}/files/{name}-1"
    files, size = registry.put_files(artifacts, engine, prefix)
    version = Version(
        name=name,
        version=1,
        format="onnxruntime",
        folder=prefix,
        files=files,
        bytes=size,
        signature=Signature(inputs=tuple(inputs), outputs=tuple(outputs)),
        made_by=Made(job=name, spec={}),
        built_for=built_for,
        labels=("a", "b", "c") if name == "net" else None,
        details={"precision": "fp32", "max_batch": 8},
        created_at=now(),
    )
    return registry.publish_version(artifacts, catalog, version)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A served app with a deployment of each; host and port."""
    folder = tmp_path_factory.mktemp("oip")
    store = EmbeddedStore(folder / "redis")
    settings = Settings(data=folder / "data", redis_url=store.start(), threads=1, port=0)
    assert settings.redis_url is not None
    artifacts, catalog = Artifacts(settings.artifacts_url), Catalog.open(settings, settings.redis_url)
    names = ("net", "text", "half", "brain", "wide", "every")
    for name in names:
        publish(name, folder, artifacts, catalog)
    app = create_app(settings)
    server = http.Server(http.config(app, settings), app)
    thread = threading.Thread(target=server.run, name="served")
    thread.start()
    try:
        until = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < until, "the app did not start"
            assert thread.is_alive(), "the app has ended"
            time.sleep(0.02)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        for name in names:
            url = f"http://{host}:{port}/v1/deployments/{name}"
            response = httpx.put(url, json={"model": name}, headers={"Prefer": "wait=60"}, timeout=90)
            assert response.json()["status"] == "ready", response.text
        yield f"{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        catalog.redis.close()
        store.stop()


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address, concurrency=4) as opened:
        yield opened


def given(name: str, values: np.ndarray, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput(name, values.shape, np_to_triton_dtype(values.dtype))
    made.set_data_from_numpy(values, binary_data=binary)
    return made


X = np.array([[1, 2, 3], [4, 5.5, -6]], np.float32)


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("net")
    assert client.is_model_ready("net", "1")
    assert not client.is_model_ready("net", "2")
    assert not client.is_model_ready("nope")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("net")
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert client.get_model_metadata("net", "1") == metadata
    config = client.get_model_config("net")
    assert (config["name"], config["max_batch_size"]) == ("net", 8)
    assert client.get_model_config("net", "1") == config
    index = client.get_model_repository_index()
    assert {"name": "net", "version": "1", "state": "READY", "reason": ""} in index


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_several_outputs(client: triton.InferenceServerClient, binary_in: bool, binary_out: bool) -> None:
    asked = [triton.InferRequestedOutput(n, binary_data=binary_out) for n in ("total", "logits")]
    result = client.infer("net", [given("x", X, binary_in)], outputs=asked, request_id="my-id")
    np.testing.assert_array_equal(result.as_numpy("logits"), X * 2)
    np.testing.assert_array_equal(result.as_numpy("total"), X.sum(1, keepdims=True))
    told = result.get_response()
    assert (told["id"], told["model_name"], told["model_version"]) == ("my-id", "net", "1")
    assert [o["name"] for o in told["outputs"]] == ["total", "logits"]


def test_every_output_unless_named(client: triton.InferenceServerClient) -> None:
    result = client.infer("net", [given("x", X)], model_version="1")
    np.testing.assert_array_equal(result.as_numpy("logits"), X * 2)
    np.testing.assert_array_equal(result.as_numpy("total"), X.sum(1, keepdims=True))


def test_numbers_that_json_lacks(client: triton.InferenceServerClient) -> None:
    odd = np.array([[np.nan, np.inf, 1]], np.float32)
    np.testing.assert_array_equal(client.infer("net", [given("x", odd)]).as_numpy("logits"), odd * 2)
    asked = [triton.InferRequestedOutput("logits", binary_data=False)]
    result = client.infer("net", [given("x", odd)], outputs=asked)
    assert result.get_output("logits")["data"] == [None, None, 2.0]


@pytest.mark.parametrize("binary", [True, False])
def test_every_datatype(client: triton.InferenceServerClient, binary: bool) -> None:
    inputs = {}
    for dtype in DTYPES:
        info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
        inputs[dtype] = np.array([[info.min, info.max] if info else [0, 1]], dtype)
    asked = [triton.InferRequestedOutput(f"{d}_out", binary_data=binary) for d in DTYPES]
    result = client.infer("every", [given(d, v, binary) for d, v in inputs.items()], outputs=asked)
    for dtype, values in inputs.items():
        found = result.as_numpy(f"{dtype}_out")
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)


def test_half_precision(client: triton.InferenceServerClient) -> None:
    values = np.array([[1.5, -0.25]], np.float16)
    np.testing.assert_array_equal(client.infer("half", [given("x", values)]).as_numpy("y"), values)
    with pytest.raises(InferenceServerException, match="FP16"):
        client.infer("half", [given("x", values, binary=False)])


def test_bfloat16(client: triton.InferenceServerClient, address: str) -> None:
    values = np.array([[1.5, -0.25], [1.0078125, np.inf]], ml_dtypes.bfloat16)
    asked = triton.InferInput("x", values.shape, "BF16")
    asked.set_data_from_numpy(values)
    told = client.infer("brain", [asked])
    np.testing.assert_array_equal(told.as_numpy("y").astype(np.float32), values.astype(np.float32))
    assert told.get_output("y")["datatype"] == "BF16"
    assert client.get_model_config("brain")["input"][0]["data_type"] == "TYPE_BF16"
    with pytest.raises(InferenceServerException, match="BF16, of which JSON has no numbers"):
        client.infer("brain", [asked], outputs=[triton.InferRequestedOutput("y", binary_data=False)])
    plain = httpx.post(f"http://{address}/predict/brain", json={"inputs": [[1.5, 1.001]]})
    assert plain.json()["outputs"] == {"y": [[1.5, 1.0]]}


@pytest.mark.parametrize("binary", [True, False])
def test_strings(client: triton.InferenceServerClient, binary: bool) -> None:
    values = np.array([["größe", ""], ["b", "c" * 1000]], object)
    asked = [triton.InferRequestedOutput("u", binary_data=binary)]
    found = client.infer("text", [given("t", values, binary)], outputs=asked).as_numpy("u")
    decoded = [[v.decode() if isinstance(v, bytes) else v for v in row] for row in found]
    assert decoded == [[v * 2 for v in row] for row in values.tolist()]


def test_classification(client: triton.InferenceServerClient) -> None:
    asked = [triton.InferRequestedOutput("logits", class_count=2)]
    found = client.infer("net", [given("x", X)], outputs=asked).as_numpy("logits")
    assert found.tolist() == [[b"6.000000:2:c", b"4.000000:1:b"], [b"11.000000:1:b", b"8.000000:0:a"]]


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_coding", [None, "gzip", "deflate"])
def test_compression(
    client: triton.InferenceServerClient, request_coding: str | None, response_coding: str | None
) -> None:
    values = np.arange(2 * WIDE, dtype=np.float32).reshape(2, WIDE)
    codings = {"request_compression_algorithm": request_coding, "response_compression_algorithm": response_coding}
    for binary in (True, False):
        asked = [triton.InferRequestedOutput("y", binary_data=binary)]
        result = client.infer("wide", [given("x", values, binary)], outputs=asked, **codings)
        np.testing.assert_array_equal(result.as_numpy("y"), values)


def test_errors_arrive_with_their_text(client: triton.InferenceServerClient) -> None:
    def told(ask: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[str, str]:
        with pytest.raises(InferenceServerException) as caught:
            ask(*arguments, **named)
        return str(caught.value.status()), str(caught.value.message())

    status, text = told(client.infer, "net", [given("x", X[:, :2])])
    assert status == "400"
    assert "FP32 [-1, 3]" in text
    status, text = told(client.infer, "net", [given("x", np.zeros((9, 3), np.float32))])
    assert status == "400"
    assert "max_batch is 8" in text
    status, text = told(client.infer, "nope", [given("x", X)])
    assert status == "404"
    assert "'nope'" in text
    assert told(client.get_model_metadata, "nope")[0] == "404"
    assert "'7'" in told(client.infer, "net", [given("x", X)], model_version="7")[1]
    asked = [triton.InferRequestedOutput("z")]
    assert "no output 'z'" in told(client.infer, "net", [given("x", X)], outputs=asked)[1]
    assert "shared memory" in told(client.get_system_shared_memory_status)[1]
    assert "shared memory" in told(client.register_cuda_shared_memory, "r", b"aGk=".decode(), 0, 8)[1]
    assert "PUT /v1/deployments/net" in told(client.load_model, "net")[1]
    assert "PUT /v1/deployments/net" in told(client.unload_model, "net")[1]
    for ask in (client.get_trace_settings, client.get_log_settings):
        assert "not served here" in told(ask)[1]
    assert told(client.update_trace_settings, "net", {"trace_rate": 1})[0] == "501"
    assert told(client.update_log_settings, {"log_info": True})[0] == "501"


def test_deadlines_and_priorities(client: triton.InferenceServerClient) -> None:
    result = client.infer("net", [given("x", X)], timeout=30_000_000, priority=1, parameters={"mine": "own"})
    np.testing.assert_array_equal(result.as_numpy("logits"), X * 2)
    result = client.infer("net", [given("x", X)], sequence_id=7, sequence_start=True)
    np.testing.assert_array_equal(result.as_numpy("logits"), X * 2)
    with pytest.raises(InferenceServerException, match="deadline") as caught:
        client.infer("net", [given("x", X)], headers={"X-Timeout-Ms": "0"})
    assert caught.value.status() == "504"


def test_many_at_once(client: triton.InferenceServerClient) -> None:
    values = [np.full((1, 3), i, np.float32) for i in range(40)]
    asked = [client.async_infer("net", [given("x", v)], request_id=str(i)) for i, v in enumerate(values)]
    for number, (request, value) in enumerate(zip(asked, values, strict=True)):
        result = request.get_result(timeout=60)
        assert result.get_response()["id"] == str(number)
        np.testing.assert_array_equal(result.as_numpy("logits"), value * 2)


def test_statistics(client: triton.InferenceServerClient) -> None:
    (before,) = client.get_inference_statistics("net")["model_stats"]
    client.infer("net", [given("x", X)])
    (after,) = client.get_inference_statistics("net", "1")["model_stats"]
    assert after["inference_count"] == before["inference_count"] + 2
    assert after["inference_stats"]["success"]["count"] == before["inference_stats"]["success"]["count"] + 1
    assert len(client.get_inference_statistics()["model_stats"]) == 6


async def test_the_asynchronous_client(address: str) -> None:
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("net")
        assert (await client.get_model_metadata("net"))["name"] == "net"
        assert (await client.get_model_config("net"))["max_batch_size"] == 8
        assert (await client.get_inference_statistics("net"))["model_stats"]
        assert len(await client.get_model_repository_index()) == 6
        values = [np.full((1, 3), i, np.float32) for i in range(40)]
        results = await asyncio.gather(*(client.infer("net", [given("x", v)]) for v in values))
        for result, value in zip(results, values, strict=True):
            np.testing.assert_array_equal(result.as_numpy("logits"), value * 2)
        wide = np.arange(WIDE, dtype=np.float32)[None]
        for coding in ("gzip", "deflate"):
            codings = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
            result = await client.infer("wide", [given("x", wide)], **codings)
            np.testing.assert_array_equal(result.as_numpy("y"), wide)
        with pytest.raises(InferenceServerException, match="max_batch is 8"):
            await client.infer("net", [given("x", np.zeros((9, 3), np.float32))])


def test_kserve(address: str) -> None:
    """In a process of its own: it is a server too, and imports as much."""
    run = subprocess.run(
        [sys.executable, str(KSERVE), f"http://{address}"], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["live"] is told["ready"] is told["model_ready"] is True
    assert told["absent_ready"] is False
    for kind in ("json", "binary", "dict"):
        assert told[kind] == [[2.0, 4.0, 6.0], [8.0, 10.0, 12.0]]
    assert told["id"] == "42"
    assert told["strings"] == [["grüßgrüß", "bb"]]
    assert "FP32 [-1, 3]" in told["error"]
    assert "404" in told["absent"]
