import asyncio
import time
from typing import Any

import httpx
import numpy as np
import pytest
from asking import problem, push_dataset, upload
from checkpoints_for_app import ONNX
from fastapi import FastAPI
from keyed import replica

from app.domain.records import Result, Signature, Tensor
from app.domain.specs import MENU
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog

TRAIN = {"kind": "train", "model": "net", "dataset": "set"}
CONVERT = {"kind": "convert", "model": "net", "target": "openvino"}


async def submit(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/v1/jobs", json=fields)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_names_become_exact_refs(client: httpx.AsyncClient, make_version: Any, app: FastAPI) -> None:
    make_version()
    make_version(format="onnx", trainable=False)
    make_version(format="openvino", trainable=False, parent="net@2")
    await push_dataset(client)
    await push_dataset(client)
    job = await submit(client, **TRAIN)
    assert (job["model"], job["dataset"], job["status"], job["spec"]["model"]) == ("net@1", "set@2", "queued", "net")
    assert list(job)[:5] == ["id", "kind", "spec", "model", "dataset"]
    assert set(job["links"]) == {"self", "events", "report", "cancel", "retry", "model"}
    assert job["progress"] == {"done": 0.0, "total": None, "unit": "", "eta_s": None}
    assert job["id"] in app.state.queue.waiting()
    assert (await submit(client, **CONVERT))["model"] == "net@2"
    evaluated = await submit(client, kind="evaluate", model="net", dataset="set", baseline="net")
    assert (evaluated["model"], evaluated["spec"]["baseline"]) == ("net@3", "net@3")


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"kind": "train", "model": "nope", "dataset": "set"}, 404, "model_not_found"),
        ({"kind": "train", "model": "net@9", "dataset": "set"}, 404, "version_not_found"),
        ({"kind": "train", "model": "net", "dataset": "nope"}, 404, "dataset_not_found"),
        ({"kind": "train", "model": "net"}, 422, "dataset_missing"),
        ({"kind": "evaluate", "model": "net"}, 422, "dataset_missing"),
        ({"kind": "prune", "model": "net", "method": "channel", "finetune": {}}, 422, "dataset_missing"),
        ({"kind": "train", "model": "net@2", "dataset": "set"}, 409, "not_trainable"),
        ({"kind": "prune", "model": "engine", "method": "channel"}, 409, "not_trainable"),
        ({"kind": "convert", "model": "engine", "target": "openvino"}, 409, "not_convertible"),
        ({"kind": "convert", "model": "net@1", "target": "openvino", "precision": "int8"}, 409, "not_quantized"),
        ({"kind": "convert", "model": "net", "target": "abacus"}, 422, "invalid"),
        ({"kind": "convert", "model": "net", "target": "openvino", "buckets": [1, 8]}, 422, "invalid"),
        ({"kind": "convert", "model": "whole", "target": "tensorrt", "buckets": [1, 8]}, 422, "not_batched"),
        ({"kind": "prune", "model": "net", "method": "channel", "amount": 1.0}, 422, "invalid"),
        ({"kind": "prune", "model": "net", "method": "random_unstructured", "importance": "taylor"}, 422, "invalid"),
        ({"kind": "prune", "model": "net", "method": "n_m", "n": 4, "m": 4}, 422, "invalid"),
        ({"kind": "prune", "model": "net", "method": "channel", "importance": "taylor"}, 422, "dataset_missing"),
        ({"kind": "prune", "model": "net", "method": "channel", "sensitivity": True}, 422, "dataset_missing"),
        ({"kind": "prune", "model": "net@1", "method": "channel", "layers": ["fc", "fc9"]}, 422, "unknown_layer"),
        ({"kind": "train", "model": "net@1", "dataset": "wide"}, 422, "dataset_mismatch"),
        ({"kind": "train", "model": "net@1", "dataset": "last"}, 422, "dataset_mismatch"),
        ({"kind": "train", "model": "net@1", "dataset": "bytes"}, 422, "dataset_mismatch"),
        ({"kind": "train", "model": "net@1", "dataset": "many"}, 422, "dataset_mismatch"),
        ({"kind": "train", "model": "net@1", "dataset": "floats"}, 422, "dataset_mismatch"),
        ({"kind": "evaluate", "model": "net", "dataset": "set", "baseline": "nope"}, 404, "model_not_found"),
        ({"kind": "evaluate", "model": "net", "dataset": "set", "baseline": "narrow"}, 422, "dataset_mismatch"),
        ({"kind": "optimize", "model": "int8", "dataset": "set"}, 409, "already_quantized"),
        ({"kind": "evaluate", "model": "named", "dataset": "set", "baseline": "turned"}, 422, "labels_differ"),
    ],
)
async def test_what_cannot_work_is_refused(
    fields: Any, status: int, code: str, refusing: tuple[httpx.AsyncClient, Catalog]
) -> None:
    client, catalog = refusing
    body = problem(await client.post("/v1/jobs", json=fields), status, code)
    if status == 409 or code in ("unknown_layer", "dataset_missing", "dataset_mismatch"):
        assert body["hint"]
    assert catalog.jobs()[0] == []


@pytest.fixture
def refusing(client: httpx.AsyncClient, make_version: Any, catalog: Catalog) -> tuple[httpx.AsyncClient, Catalog]:
    """Models and data sets of every kind. The latter as records alone: nothing reads them here."""
    from app.domain.records import Dataset, Split

    make_version()
    make_version(format="onnx", trainable=False, notes=("onnx is not trainable",))
    make_version("engine", format="openvino", trainable=False, parent="net@1")
    make_version("int8", format="onnx", trainable=False, details={"quantized": {"target": "openvino"}})
    make_version("named", labels=tuple("abcdefghij"))
    make_version("turned", labels=tuple("jihgfedcba"))
    whole = Signature(inputs=(Tensor(name="x", shape=(2, 3)),), outputs=(Tensor(name="y", shape=(2, 3)),))
    make_version("whole", signature=whole.model_dump())
    narrow = Signature(inputs=(Tensor(name="x", shape=(-1, 1, 28, 27)),), outputs=(Tensor(name="y", shape=(-1, 10)),))
    make_version("narrow", signature=narrow.model_dump())
    split = Split(rows=1, x="x.npy", y="y.npy")
    plain = Dataset(
        name="set", version=1, kind="arrays", folder="f", files={}, bytes=1, x_shape=(1, 28, 28), x_dtype="float32",
        created_at="now", y_dtype="int64", classes=10, split_note="",
        splits={"train": split, "val": split, "test": split},
    )  # fmt: skip
    catalog.put_dataset(plain)
    catalog.put_dataset(plain.but(name="wide", x_shape=(1, 28, 29)))
    catalog.put_dataset(plain.but(name="last", x_shape=(28, 28, 1)))
    catalog.put_dataset(plain.but(name="bytes", x_dtype="uint8"))
    catalog.put_dataset(plain.but(name="many", classes=11))
    catalog.put_dataset(plain.but(name="floats", classes=None, y_dtype="float32"))
    return client, catalog


async def test_hints_tell_what_to_do(refusing: tuple[httpx.AsyncClient, Catalog]) -> None:
    client, _ = refusing
    body = problem(await client.post("/v1/jobs", json={"kind": "train", "model": "net@1", "dataset": "last"}), 422)
    assert "transpose" in body["hint"]
    asked = {"kind": "prune", "model": "net@1", "method": "channel", "layers": ["fc9"]}
    body = problem(await client.post("/v1/jobs", json=asked), 422)
    assert "conv1, fc" in body["hint"]
    asked = {"kind": "convert", "model": "net@1", "target": "openvino", "precision": "int8"}
    assert "quantize" in problem(await client.post("/v1/jobs", json=asked), 409)["hint"]
    assert (
        "onnx is not trainable"
        in problem(await client.post("/v1/jobs", json=TRAIN | {"model": "net@2"}), 409)["detail"]
    )


@pytest.mark.parametrize(
    ("spec", "meant"),
    [
        ({"kind": "convert", "target": "openvino"}, "mixed@1"),
        ({"kind": "convert", "target": "openvino", "precision": "int8"}, "mixed@2"),
        ({"kind": "quantize", "target": "openvino", "dataset": "set"}, "mixed@1"),
        ({"kind": "optimize", "dataset": "set"}, "mixed@1"),
        ({"kind": "evaluate", "dataset": "set"}, "mixed@2"),
    ],
)
async def test_a_name_means_the_newest_version_that_the_job_can_use(
    refusing: tuple[httpx.AsyncClient, Catalog], make_version: Any, spec: dict[str, Any], meant: str
) -> None:
    make_version("mixed", format="onnx", trainable=False)
    details = {"quantized": {"target": "openvino"}}
    make_version("mixed", format="onnx", trainable=False, parent="mixed@1", details=details)
    answer = await refusing[0].post("/v1/jobs", json=spec | {"model": "mixed"})
    assert answer.status_code == 202, answer.text
    assert answer.json()["model"] == meant


async def test_dynamic_and_fixed_shapes(client: httpx.AsyncClient, make_version: Any) -> None:
    def signature(shape: tuple[int, ...], batch_axis: int | None = 0) -> dict[str, Any]:
        return Signature(inputs=(Tensor(name="x", shape=shape, batch_axis=batch_axis),)).model_dump()

    await push_dataset(client, x=np.zeros((20, 3, 8, 9), np.float32), y=np.arange(20) % 2)
    for i, (shape, axis, fits) in enumerate(
        [
            ((-1, 3, -1, -1), 0, True),
            ((1, 3, 8, 9), None, True),
            ((1, 3, 8, 9), 0, True),
            ((3, -1, 8, 9), 1, True),
            ((-1, 3, 8, -1, 1), 0, False),
            ((-1, -1), 0, False),
        ]
    ):
        make_version(f"m{i}", signature=signature(shape, axis))
        answer = await client.post("/v1/jobs", json=TRAIN | {"model": f"m{i}"})
        assert (answer.status_code == 202) is fits, (shape, answer.text)
    two = Signature(inputs=(Tensor(name="x", shape=(-1, 3)), Tensor(name="y", shape=(-1, 3))))
    make_version("two", signature=two.model_dump())
    assert "2 inputs" in problem(await client.post("/v1/jobs", json=TRAIN | {"model": "two"}), 422)["detail"]


def worker(**fields: Any) -> dict[str, Any]:
    targets = {
        "openvino": {"ok": True, "reason": "", "precisions": ["fp32", "fp16"]},
        "tensorrt": {"ok": False, "reason": "no NVIDIA driver: cuInit said 100"},
    }
    return {
        "id": "w1",
        "host": "h",
        "queues": ["cpu"],
        "targets": targets,
        "isolation": "namespaces",
        "device": "cpu",
    } | fields


async def test_targets_and_queues(client: httpx.AsyncClient, make_version: Any, catalog: Catalog) -> None:
    make_version()
    await push_dataset(client)
    assert (await submit(client, **CONVERT | {"target": "tensorrt"}))["queue"] == "gpu"
    assert (await submit(client, **TRAIN))["queue"] == "cpu"
    catalog.announce_worker(worker())
    body = problem(await client.post("/v1/jobs", json=CONVERT | {"target": "tensorrt"}), 409, "target_unavailable")
    assert "cuInit said 100" in body["detail"]
    problem(await client.post("/v1/jobs", json=CONVERT | {"precision": "bf16"}), 409, "target_unavailable")
    kinds = (await client.get("/v1/jobs/kinds")).json()
    assert [k["kind"] for k in kinds["kinds"]] == list(MENU)
    assert kinds["kinds"][1]["schema"]["properties"]["epochs"]["maximum"] == 10_000
    assert (kinds["targets"]["tensorrt"]["ok"], kinds["isolation"]) == (False, "namespaces")
    assert "cuInit" in kinds["targets"]["tensorrt"]["reason"]
    assert kinds["targets"]["openvino"]["precisions"] == ["fp16", "fp32"]
    catalog.announce_worker(worker(id="w2", queues=["gpu", "cpu"], isolation="none"))
    assert (await submit(client, **TRAIN))["queue"] == "gpu"
    assert (await client.get("/v1/jobs/kinds")).json()["isolation"] == "none"
    # What only some workers can do goes to them, wherever others listen; what all can do, where somebody listens.
    able = {name: {"ok": True, "precisions": ["fp32"]} for name in ("tensorrt", "openvino")}
    catalog.announce_worker(worker(id="w3", queues=["gpu", "gpu-tensorrt", "gpu-tensorrt-9.0-x"], targets=able))
    assert (await submit(client, **CONVERT | {"target": "tensorrt"}))["queue"] == "gpu-tensorrt"
    assert (await submit(client, **CONVERT))["queue"] == "cpu"
    make_version("engine", format="tensorrt")
    assert (await submit(client, kind="evaluate", model="engine@1", dataset="set"))["queue"] == "gpu-tensorrt"
    for id in ("w1", "w2"):
        catalog.drop_worker(id)
    assert (await submit(client, **CONVERT))["queue"] == "gpu"


async def test_pools_are_counted_on_while_nobody_is_alive(
    settings: Settings, catalog: Catalog, make_version: Any
) -> None:
    make_version()
    catalog.announce_worker(worker())
    async with replica(settings.model_copy(update={"pools": "gpu, gpu-tensorrt"})) as client:
        await push_dataset(client)
        assert (await submit(client, **TRAIN))["queue"] == "gpu"
        assert (await submit(client, **CONVERT | {"target": "tensorrt"}))["queue"] == "gpu-tensorrt"
        assert (await submit(client, **CONVERT))["queue"] == "cpu"
        assert len((await client.get("/v1/jobs/kinds")).json()["workers"]) == 1
    async with replica(settings) as client:
        assert (await client.post("/v1/jobs", json=CONVERT | {"target": "tensorrt"})).status_code == 409
        assert (await submit(client, **TRAIN | {"seed": 1}))["queue"] == "cpu"
    for wrong in ("gpu,", "GPU", "disk"):
        with pytest.raises(ValueError):
            Settings(pools=wrong)


async def test_lists(client: httpx.AsyncClient, make_version: Any, catalog: Catalog) -> None:
    make_version()
    make_version("other")
    ids = [(await submit(client, **CONVERT))["id"] for _ in range(3)]
    other = (await submit(client, **CONVERT | {"model": "other"}))["id"]
    catalog.moved(ids[0], was={"queued"}, to="running", attempt=1)
    first = (await client.get("/v1/jobs?limit=3")).json()
    second = (await client.get("/v1/jobs", params={"limit": 3, "cursor": first["next_cursor"]})).json()
    assert {j["id"] for j in first["items"] + second["items"]} == {*ids, other}
    assert second["next_cursor"] is None
    assert [j["id"] for j in (await client.get("/v1/jobs?status=running")).json()["items"]] == [ids[0]]
    assert [j["id"] for j in (await client.get("/v1/jobs?model=other")).json()["items"]] == [other]
    assert (await client.get("/v1/jobs?kind=train")).json() == {"items": [], "next_cursor": None}
    problem(await client.get("/v1/jobs/nope"), 404, "job_not_found")


async def test_idempotency(client: httpx.AsyncClient, make_version: Any) -> None:
    make_version()
    headers = {"Idempotency-Key": "abc"}
    answers = await asyncio.gather(*(client.post("/v1/jobs", json=CONVERT, headers=headers) for _ in range(5)))
    assert {a.status_code for a in answers} == {202}
    assert len({a.json()["id"] for a in answers}) == 1
    reordered = dict(reversed(CONVERT.items()))
    assert (await client.post("/v1/jobs", json=reordered, headers=headers)).json()["id"] == answers[0].json()["id"]
    changed = await client.post("/v1/jobs", json=CONVERT | {"max_batch": 2}, headers=headers)
    problem(changed, 409, "idempotency_conflict")


async def test_waiting(client: httpx.AsyncClient, make_version: Any, catalog: Catalog) -> None:
    make_version()
    job = await submit(client, **CONVERT)
    url = f"/v1/jobs/{job['id']}"
    started = time.monotonic()
    answer = await client.get(url, headers={"Prefer": "respond-async, wait=1"})
    assert answer.headers["preference-applied"] == "wait=1"
    assert 0.9 < time.monotonic() - started < 60  # where the longest wait would end
    for nonsense in ("wait=soon", "wait=-5", "waiter=9", ""):
        answer = await client.get(url, headers={"Prefer": nonsense})
        assert "preference-applied" not in answer.headers
    waiting = asyncio.create_task(client.get(url, headers={"Prefer": "wait=60"}))
    await asyncio.sleep(0.3)
    catalog.moved(job["id"], was={"queued"}, to="running")
    catalog.moved(job["id"], was={"running"}, to="succeeded", result=Result(model="net@2"))
    found = (await asyncio.wait_for(waiting, 55)).json()
    assert (found["status"], found["result"]["model"]) == ("succeeded", "net@2")
    assert found["links"]["model"] == "/v1/models/net/versions/2"


async def test_cancel(client: httpx.AsyncClient, make_version: Any, catalog: Catalog, app: FastAPI) -> None:
    make_version()
    queued = (await submit(client, **CONVERT))["id"]
    answer = await client.post(f"/v1/jobs/{queued}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert answer.json()["finished_at"]
    assert queued not in app.state.queue.waiting()
    problem(await client.post(f"/v1/jobs/{queued}/cancel"), 409, "already_ended")
    running = (await submit(client, **CONVERT))["id"]
    catalog.moved(running, was={"queued"}, to="running", attempt=1, lease_s=60)
    for _ in range(2):
        answer = await client.post(f"/v1/jobs/{running}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")
    assert catalog.leased(running)
    problem(await client.post("/v1/jobs/nope/cancel"), 404)


async def test_retry(client: httpx.AsyncClient, make_version: Any, catalog: Catalog, app: FastAPI) -> None:
    make_version()
    id = (await submit(client, **CONVERT))["id"]
    problem(await client.post(f"/v1/jobs/{id}/retry"), 409, "not_ended")
    catalog.moved(id, was={"queued"}, to="running", attempt=1)
    catalog.moved(id, was={"running"}, to="failed", attempt=1, error={"detail": "x"})
    app.state.queue.cancel(catalog.job(id))
    headers = {"Idempotency-Key": "r1"}
    for _ in range(2):
        answer = await client.post(f"/v1/jobs/{id}/retry", headers=headers)
        assert answer.status_code == 202, answer.text
        job = answer.json()
        assert (job["id"], job["status"], job["attempt"], job["error"]) == (id, "queued", 2, None)
        assert (job["started_at"], job["finished_at"]) == (None, None)
    assert id in app.state.queue.waiting()
    assert catalog.job(id).allowed_attempts == 3
    catalog.moved(id, was={"queued"}, to="running")
    catalog.moved(id, was={"running"}, to="succeeded")
    problem(await client.post(f"/v1/jobs/{id}/retry"), 409, "already_succeeded")
    problem(await client.post("/v1/jobs/nope/retry"), 404)


async def test_retry_of_what_is_gone(client: httpx.AsyncClient, make_version: Any, artifacts: Artifacts) -> None:
    job = (await client.post("/v1/models", **upload(ONNX, {"name": "a"}))).json()
    await client.post(f"/v1/jobs/{job['id']}/cancel")
    artifacts.delete(job["spec"]["upload"])
    problem(await client.post(f"/v1/jobs/{job['id']}/retry"), 409, "upload_gone")
    make_version()
    id = (await submit(client, **CONVERT))["id"]
    await client.post(f"/v1/jobs/{id}/cancel")
    assert (await client.delete("/v1/models/net/versions/1")).status_code == 204
    problem(await client.post(f"/v1/jobs/{id}/retry"), 409, "source_gone")


async def test_report(client: httpx.AsyncClient, make_version: Any, catalog: Catalog) -> None:
    make_version()
    id = (await submit(client, **CONVERT))["id"]
    catalog.moved(id, was={"queued"}, to="running", attempt=1)
    for epoch in range(3):
        row = {"epoch": epoch, "train_loss": 1 / (epoch + 1), "val_accuracy": float("nan") if epoch == 1 else 0.5}
        catalog.note(id, 1, "metrics", row, row=row, metrics=row)
    report = {
        "summary": "<script>alert(1)</script>",
        "layers": [{"name": "a&b", "sparsity": 0.5}],
        "nested": {"x": [1, 2]},
    }
    catalog.moved(id, was={"running"}, to="succeeded", result=Result(model="net@2", verdict="accepted", report=report))
    url = f"/v1/jobs/{id}/report"
    found = (await client.get(url)).json()
    assert (found["report"], found["verdict"], len(found["history"])) == (report, "accepted", 3)
    assert found["history"][1]["val_accuracy"] is None
    page = await client.get(url, headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html")
    assert "<script" not in page.text
    assert "&lt;script&gt;" in page.text
    assert page.text.count("<svg") == 2
    assert "a&amp;b" in page.text
    assert "http" not in page.text.replace("xmlns", "")
    for accept in ("application/json", "*/*", "text/html;q=0.1,application/json", "text/html;q=x"):
        answer = await client.get(url, headers={"Accept": accept})
        assert answer.headers["content-type"].startswith(("application/json", "text/html"))
    problem(await client.get("/v1/jobs/nope/report"), 404)


async def test_only_the_notes_of_an_import_say_why_a_version_cannot_be_trained(
    refusing: tuple[httpx.AsyncClient, Catalog], make_version: Any
) -> None:
    client, _ = refusing
    make_version("made", format="onnx", trainable=False, notes=("all rows calibrate",), parent="net@1")
    for model, told in (("net@2", True), ("made", False)):
        body = problem(await client.post("/v1/jobs", json=TRAIN | {"model": model}), 409, "not_trainable")
        assert ("(" in body["detail"]) == told
