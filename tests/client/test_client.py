"""Pushing, deploying and predicting: what goes over the wire, and what comes back."""

from __future__ import annotations

import hashlib
import io
import json
from email import message_from_bytes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from enginesmith import Client, DeploymentFailed, EnginesmithError, Job, Record, TimedOut
from enginesmith.uploads import write_npz

from .stub import DONE, Answer, Asked, Stub, job

X = np.arange(6, dtype=np.float32).reshape(2, 3)
VERSION = {
    "ref": "net@2",
    "name": "net",
    "version": 2,
    "format": "torch",
    "files": {},
    "metrics": {"quality": {"value": 0.98}},
}


def parts(asked: Asked) -> dict[str, tuple[str | None, bytes]]:
    """A multipart body: field → (filename, content)."""
    head = f"Content-Type: {asked.headers['Content-Type']}\r\n\r\n".encode()
    found: dict[str, tuple[str | None, bytes]] = {}
    for part in message_from_bytes(head + asked.body).get_payload():
        name = part.get_param("name", header="content-disposition")
        found[name] = (part.get_filename(), part.get_payload(decode=True))
    return found


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    write_npz(buffer, arrays)
    return buffer.getvalue()


def test_records_are_dicts_whose_keys_are_attributes(stub: Stub, client: Client) -> None:
    stub.on("GET", "/v1/models/net/versions/2", Answer(200, VERSION))
    version = client.models.version("net@2")
    assert version.metrics.quality.value == version["metrics"]["quality"]["value"] == 0.98
    assert version.raw == VERSION
    with pytest.raises(AttributeError, match="it has ref, name"):
        _ = version.speed


def test_push_streams_a_file_and_waits(stub: Stub, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "net.pt"
    file.write_bytes(b"weights" * 1000)
    busy = Answer(429, {"status": 429, "detail": "busy"}, {"Retry-After": "0"})
    stub.on("POST", "/v1/models", busy, Answer(202, job(kind="import")))
    stub.on("GET", "/v1/jobs/j1", Answer(200, DONE))
    stub.on("GET", "/v1/models/net/versions/2", Answer(200, VERSION))
    version = client.push(file, "net", architecture={"sequential": []}, labels=("a", "b"))
    assert version.ref == "net@2"
    for asked in stub.asked[:2]:  # the second try sends the whole file again
        sent = parts(asked)
        assert sent["file"] == ("net.pt", file.read_bytes())
        assert json.loads(sent["manifest"][1]) == {
            "name": "net",
            "architecture": {"sequential": []},
            "labels": ["a", "b"],
        }


def test_push_of_what_export_made(stub: Stub, client: Client) -> None:
    stub.on("POST", "/v1/models", Answer(202, job(kind="import")))
    made = Record(architecture={"graph": {}}, signature={"inputs": []}, weights=b"safe")
    assert client.push(made, "net", wait=False).id == "j1"
    sent = parts(stub.asked[0])
    assert sent["file"] == ("net.safetensors", b"safe")
    assert json.loads(sent["manifest"][1])["architecture"] == {"graph": {}}


def test_a_module_needs_an_example(client: Client) -> None:
    class Module:
        def state_dict(self) -> None: ...
        def forward(self) -> None: ...

    with pytest.raises(EnginesmithError, match="example="):
        client.push(Module(), "net")


def test_arrays_as_a_data_set(stub: Stub, client: Client) -> None:
    stub.on("POST", "/v1/datasets", Answer(201, {"name": "digits", "version": 1}))
    client.datasets.push("digits", x=X, y=[0, 1])
    sent = parts(stub.asked[0])
    assert json.loads(sent["manifest"][1]) == {"name": "digits", "kind": "arrays"}
    found = np.load(io.BytesIO(sent["file"][1]), allow_pickle=False)
    assert np.array_equal(found["x"], X)
    assert found["y"].tolist() == [0, 1]


def test_kinds_of_data_set_files(stub: Stub, client: Client, tmp_path: Path) -> None:
    stub.on("POST", "/v1/datasets", Answer(201, {"name": "d"}))
    for name, kind in {"a.npz": "arrays", "b.zip": "images", "c.csv": "table", "d.parquet": "table"}.items():
        (tmp_path / name).write_bytes(b"x")
        client.datasets.push("d", tmp_path / name)
        assert json.loads(parts(stub.asked[-1])["manifest"][1])["kind"] == kind
    (tmp_path / "e.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="say kind="):
        client.datasets.push("d", tmp_path / "e.bin")
    with pytest.raises(TypeError, match="unequal"):
        client.datasets.push("d", x=np.array([[1], [1, 2]], dtype=object), y=[0, 1])


def test_arrays_travel_as_binary_both_ways(stub: Stub, client: Client) -> None:
    stub.on("POST", "/predict/d", Answer(200, npz(logits=X, aux=X[0]), {"Content-Type": "application/x-npz"}))
    found = client.predict("d", X, timeout_ms=250)
    asked = stub.asked[0]
    assert asked.headers["Content-Type"] == "application/x-npy"
    assert asked.headers["X-Timeout-Ms"] == "250"
    assert np.array_equal(np.load(io.BytesIO(asked.body)), X)
    assert np.array_equal(found.outputs["logits"], X)
    assert found.outputs["logits"].dtype == np.float32
    client.predict("d", {"file": X, "b": X})
    assert sorted(np.load(io.BytesIO(stub.asked[1].body)).files) == ["b", "file"]


def test_lists_travel_as_json(stub: Stub, client: Client) -> None:
    body = {"model": "net@2", "outputs": {"logits": [[1.0]]}, "predictions": [[{"label": "3", "score": 0.98}]]}
    stub.on("POST", "/predict/d", Answer(200, body))
    found = client.predict("d", [[1, 2]], top_k=1, outputs=["logits"])
    assert stub.asked[0].json == {"inputs": [[1, 2]], "outputs": ["logits"], "top_k": 1}
    assert found.predictions[0][0].label == "3"
    assert found.outputs == {"logits": [[1.0]]}
    client.predict("d", X, as_json=True)
    assert stub.asked[1].json == {"inputs": X.tolist()}


def test_images(stub: Stub, client: Client, tmp_path: Path) -> None:
    stub.on("POST", "/predict/d", Answer(200, {"model": "net@2", "outputs": {}}))
    png = b"\x89PNG\r\n\x1a\n"
    client.predict("d", png)
    assert stub.asked[0].headers["Content-Type"] == "image/png"
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8")
    client.predict("d", [tmp_path / "a.jpg", png])
    assert stub.asked[1].headers["Content-Type"].startswith("multipart/form-data")
    assert b"image/jpeg" in stub.asked[1].body


def test_deploy_waits_until_it_is_ready(stub: Stub, client: Client) -> None:
    loading = {"name": "d", "model": "net@3", "status": "loading"}
    stub.on("PUT", "/v1/deployments/d", Answer(201, loading))
    stub.on("GET", "/v1/deployments/d", Answer(200, loading), Answer(200, loading | {"status": "ready"}))
    assert client.deploy("d", "net@3", max_batch=8).status == "ready"
    assert stub.asked[0].json == {"model": "net@3", "max_batch": 8}
    with pytest.raises(ValueError, match="j1 made no version"):  # a dry run
        client.deploy("d", Job(id="j1", kind="prune", result={"model": None, "report": {}}))
    stub.on("GET", "/v1/deployments/d", Answer(200, loading))
    with pytest.raises(TimedOut):
        client.deploy("d", "net@3", timeout=0.15)
    stub.on(
        "GET",
        "/v1/deployments/d",
        Answer(200, loading | {"status": "failed", "error": {"detail": "damaged", "hint": "convert again"}}),
    )
    with pytest.raises(DeploymentFailed, match="damaged") as caught:
        client.deploy("d", "net@3")
    assert caught.value.hint == "convert again"


def test_download_goes_on_where_it_broke_and_checks_the_hash(stub: Stub, client: Client, tmp_path: Path) -> None:
    content = bytes(range(256)) * 500

    def ranged(asked: Asked) -> Answer:
        start = int(asked.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        return Answer(206, content[start:], {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"})

    files = {"sub/model.bin": hashlib.sha256(content).hexdigest()}
    stub.on("GET", "/v1/models/net/versions/2", Answer(200, VERSION | {"files": files}))
    stub.on("GET", "/v1/models/net/versions/2/files/sub/model.bin", Answer(200, content, drop_after=70_000), ranged)
    client.models.download("net@2", tmp_path)
    assert (tmp_path / "sub/model.bin").read_bytes() == content
    stub.on("GET", "/v1/models/net/versions/2/files/sub/model.bin", Answer(200, b"other"))
    with pytest.raises(EnginesmithError, match="damaged"):
        client.models.download("net@2", tmp_path / "again")
    stub.on("GET", "/v1/models/net/versions/2", Answer(200, VERSION | {"files": {"../up": "0"}}))
    with pytest.raises(EnginesmithError, match="outside"):
        client.models.download("net@2", tmp_path)


def test_health_of_a_service_that_is_not_ready(stub: Stub, client: Client, slept: list[float]) -> None:
    stub.on("GET", "/healthz/live", Answer(200, {"live": True}))
    stub.on("GET", "/healthz/ready", Answer(503, {"ready": False, "waiting": ["d"]}))
    found = client.health()
    assert (found.live, found.ready, found.waiting) == (True, False, ["d"])
    assert slept == []
