"""What must be refused, over real HTTP: a body that says what is wrong and what to do, and no trace in the store."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import torch
from enginesmith import Client, export
from networks import SimpleCNN
from onnx import TensorProto, helper
from running import Service, files_in, until
from safetensors.torch import save

CNN = export(SimpleCNN(), torch.zeros(1, 1, 28, 28))


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=240, trust_env=False) as opened:
        yield opened


@pytest.fixture(scope="module", autouse=True)
def _served(service: Service, digits: dict[str, np.ndarray]) -> None:
    with Client(service.url) as client:
        client.push(SimpleCNN(), "good", example=torch.zeros(1, 1, 28, 28), wait=True)
        client.datasets.push("good-digits", digits)
        built = client.jobs.submit("convert", model="good@1", target="onnxruntime", max_batch=8, wait=True)
        client.deploy("good", built.result.model)
        # What cannot be built is refused by what the workers say of themselves, which may come after their first job.
        until(lambda: bool(client.kinds()["workers"]))


def upload(http: httpx.Client, name: str, content: bytes, filename: str = "net.pt", **manifest: Any) -> dict[str, Any]:
    """The problem with an upload: of the request itself, or of the import that it started."""
    response = http.post(
        "/v1/models",
        files={"file": (filename, content)},
        data={"manifest": json.dumps({"name": name} | manifest)},
        headers={"Prefer": "wait=60"},
    )
    if response.is_success:
        job = response.json()
        while job["status"] not in ("succeeded", "failed"):
            job = http.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=30"}).json()
        assert job["status"] == "failed"
        problem: dict[str, Any] = job["error"]
    else:
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        assert problem["status"] == response.status_code
    assert problem["detail"]
    assert problem["code"]
    assert problem.get("hint") or problem.get("errors")
    assert 400 <= problem["status"] < 500
    return problem


def no_trace(service: Service, name: str) -> None:
    store = service.data / "store"
    until(lambda: files_in(store / "staging") == [])  # a job ends first, and clears up then
    assert files_in(store / "models" / name) == []
    assert files_in(store / "datasets" / name) == []


def weights(**change: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(OrderedDict(SimpleCNN().state_dict()) | change, buffer)
    return buffer.getvalue()


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def packed(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


FILES = {
    "empty": lambda: b"",
    "truncated": lambda: weights()[:40_000],
    "random": lambda: random.Random(0).randbytes(5000),
    "text": lambda: b"hello, this is no checkpoint at all\n" * 50,
    "bomb": lambda: packed({"config.json": b"{}", "model.safetensors": b"\0" * (400 << 20)}),
    "climbing": lambda: packed({"config.json": b"{}", "../../evil.safetensors": b"x"}),
    "safetensors header": lambda: struct.pack("<Q", 1 << 60) + b"{}",
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_checkpoints(http: httpx.Client, service: Service, case: str) -> None:
    name = f"bad-{case.replace(' ', '-')}"
    upload(http, name, FILES[case](), architecture=CNN.architecture, signature=CNN.signature)
    no_trace(service, name)


@pytest.mark.parametrize("protocol", [0, pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_pickle_that_would_run_a_command_does_not(
    http: httpx.Client, service: Service, tmp_path: Path, protocol: int
) -> None:
    canary = tmp_path / "canary"
    problem = upload(http, "evil", pickle.dumps({"state_dict": Evil(canary)}, protocol=protocol))
    assert problem["status"] in (415, 422)
    buffer = io.BytesIO()
    torch.save({"a": Evil(canary)}, buffer)
    upload(http, "evil", buffer.getvalue(), architecture=CNN.architecture, signature=CNN.signature)
    torch.save(Evil(canary), buffer := io.BytesIO(), _use_new_zipfile_serialization=False)
    upload(http, "evil", buffer.getvalue(), architecture=CNN.architecture, signature=CNN.signature)
    assert not canary.exists()
    no_trace(service, "evil")


def test_an_architecture_that_does_not_fit_names_the_keys(http: httpx.Client, service: Service) -> None:
    wrong = weights(**{"fc1.weight": torch.zeros(50, 99), "extra.weight": torch.zeros(1)})
    problem = upload(http, "unfit", wrong, architecture=CNN.architecture, signature=CNN.signature)
    assert "fc1.weight" in problem["detail"]
    assert "extra.weight" in problem["detail"]
    no_trace(service, "unfit")


def test_weights_without_an_architecture_say_how_to_give_one(http: httpx.Client) -> None:
    assert "architecture" in upload(http, "bare", weights())["hint"]


@pytest.mark.parametrize("target", ["os.system", "torch.load"])
def test_a_graph_with_a_function_that_is_not_allowed(http: httpx.Client, service: Service, target: str) -> None:
    graph = json.loads(json.dumps(CNN.architecture))
    for node in graph["graph"]["nodes"]:
        if node["op"] == "call_function":
            node["target"] = target
            break
    problem = upload(http, "forbidden", weights(), architecture=graph, signature=CNN.signature)
    assert target in problem["detail"]
    no_trace(service, "forbidden")


def test_a_graph_that_asks_for_the_moon(http: httpx.Client, service: Service) -> None:
    graph = {"sequential": [{"type": "Linear", "in_features": 1_000_000, "out_features": 10_000_000}]}
    upload(
        http,
        "moon",
        save({"0.weight": torch.zeros(2, 2)}),
        "m.safetensors",
        architecture=graph,
        signature=CNN.signature,
    )
    no_trace(service, "moon")


def test_weights_that_are_not_numbers(http: httpx.Client, service: Service) -> None:
    nan = weights(**{"fc2.bias": torch.full((10,), float("nan"))})
    problem = upload(http, "nan", nan, architecture=CNN.architecture, signature=CNN.signature)
    assert "fc2.bias" in problem["detail"]
    no_trace(service, "nan")


def onnx_bytes(op: str = "Relu", domain: str = "", opset: int = 17, external: bool = False) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    nodes = [helper.make_node(op, ["x"], ["y"], domain=domain)]
    held = []
    if external:
        w = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
        entry = w.external_data.add()
        entry.key, entry.value = "location", "/etc/passwd"
        held, nodes = [w], [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    imports = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return onnx.ModelProto(ir_version=8, graph=graph, opset_import=imports).SerializeToString()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (onnx_bytes(external=True), "external"),
        (onnx_bytes(opset=999), "999"),
        (onnx_bytes("Frobnicate", "com.example"), "Frobnicate"),
    ],
    ids=["external data", "future opset", "custom operator"],
)
def test_onnx_that_cannot_be_taken(http: httpx.Client, service: Service, content: bytes, word: str) -> None:
    assert word in upload(http, "bad-onnx", content, "net.onnx")["detail"]
    no_trace(service, "bad-onnx")


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


X = np.zeros((20, 1, 28, 28), np.float32)
Y = np.arange(20) % 10


@pytest.mark.parametrize(
    ("content", "manifest"),
    [
        (npz(x=np.where(np.arange(20) == 7, np.nan, 0).astype(np.float32), y=Y), {}),
        (npz(x=X, y=Y - 3), {}),
        (npz(x=X, y=Y), {"labels": ["a", "b"]}),
        (npz(x=X, y=Y[:-1]), {}),
        (npz(x=X), {}),
        (npz(x=X[:0], y=Y[:0]), {}),
        (npz(x=X, y=Y)[:-200], {}),
        (b"", {}),
        (npz(x=np.array([{}, {}], dtype=object), y=Y[:2]), {}),
    ],
    ids=[
        "nan",
        "negative labels",
        "labels out of range",
        "rows differ",
        "no y",
        "no rows",
        "cut off",
        "empty",
        "objects",
    ],
)
def test_bad_data_sets(http: httpx.Client, service: Service, content: bytes, manifest: dict[str, Any]) -> None:
    response = http.post(
        "/v1/datasets",
        files={"file": ("d.npz", content)},
        data={"manifest": json.dumps({"name": "bad", "kind": "arrays"} | manifest)},
    )
    assert 400 <= response.status_code < 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["detail"]
    no_trace(service, "bad")


@pytest.mark.parametrize(
    ("spec", "status", "word"),
    [
        ({"kind": "frobnicate"}, 422, "train"),
        ({"kind": "prune", "model": "good@1", "method": "l1_unstructured", "amount": 1.0}, 422, "amount"),
        ({"kind": "prune", "model": "good@1", "method": "channel", "amount": 0.5, "layers": ["conv9"]}, 422, "conv9"),
        ({"kind": "train", "model": "good@1"}, 422, "dataset"),
        ({"kind": "train", "model": "nobody", "dataset": "good-digits"}, 404, "nobody"),
        ({"kind": "train", "model": "good@2", "dataset": "good-digits"}, 409, "train"),
        ({"kind": "train", "model": "good@1", "dataset": "narrow"}, 422, "shape"),
        ({"kind": "train", "model": "good@1", "dataset": "many"}, 422, "class"),
        ({"kind": "convert", "model": "good@2", "target": "openvino"}, 409, "convert"),
        ({"kind": "convert", "model": "good@1", "target": "openvino", "precision": "int8"}, 409, "quantize"),
        ({"kind": "convert", "model": "good@1", "target": "tensorrt"}, 409, "driver"),
        ({"kind": "convert", "model": "good@1", "target": "abacus"}, 422, "target"),
        ({"kind": "train", "model": "good@1", "dataset": "good-digits", "epochs": -1}, 422, "epochs"),
        ({"kind": "train", "model": "good@1", "dataset": "good-digits", "colour": "red"}, 422, "colour"),
    ],
)
def test_jobs_that_cannot_be(http: httpx.Client, spec: dict[str, Any], status: int, word: str) -> None:
    for name, x, y in (("narrow", X[..., :8], Y), ("many", X, np.arange(20))):
        if http.get(f"/v1/datasets/{name}").status_code == 404:
            http.post(
                "/v1/datasets",
                files={"file": ("d.npz", npz(x=x, y=y))},
                data={"manifest": json.dumps({"name": name, "kind": "arrays"})},
            ).raise_for_status()
    response = http.post("/v1/jobs", json=spec)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert word in response.text


def test_json_nested_ten_thousand_deep(http: httpx.Client) -> None:
    deep = b"[" * 10_000 + b"]" * 10_000
    for path, body in (
        ("/v1/jobs", b'{"kind": "train", "model": ' + deep + b"}"),
        ("/predict/good", b'{"inputs": ' + deep + b"}"),
    ):
        response = http.post(path, content=body, headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 422), response.text
    for manifest in (b'{"name": "deep", "architecture": ' + deep + b"}",):
        response = http.post("/v1/models", files={"file": ("n.pt", weights())}, data={"manifest": manifest})
        assert response.status_code in (400, 422), response.text


@pytest.mark.parametrize(
    ("inputs", "word"),
    [
        ({"y": np.zeros((1, 1, 28, 28), np.float32)}, "x"),
        ({"x": np.zeros((1, 1, 28, 28), np.int64)}, "float32"),
        ({"x": np.zeros((1, 28, 28), np.float32)}, "28"),
        ({"x": np.full((1, 1, 28, 28), np.nan, np.float32)}, "NaN"),
        ({"x": np.full((1, 1, 28, 28), np.inf, np.float32)}, "inf"),
        ({"x": np.zeros((9, 1, 28, 28), np.float32)}, "8"),
        ({"x": np.zeros((0, 1, 28, 28), np.float32)}, "[0, 1, 28, 28]"),
    ],
    ids=["name", "dtype", "shape", "nan", "infinity", "too many rows", "no rows"],
)
def test_predictions_with_wrong_tensors(http: httpx.Client, inputs: dict[str, np.ndarray], word: str) -> None:
    response = http.post(
        "/predict/good", content=npz(**inputs), headers={"Content-Type": "application/x-npz", "Accept": "*/*"}
    )
    assert response.status_code == 422, response.text
    assert word.lower() in response.text.lower()
    fine = http.post("/predict/good", json={"inputs": np.zeros((1, 1, 28, 28)).tolist()})
    assert fine.status_code == 200
