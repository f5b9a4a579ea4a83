import asyncio
import gzip
import io
import random
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints_for_app as files
import httpx
import pytest
from asking import problem, upload
from fastapi import FastAPI

from app.domain.deployments import Deployment
from app.domain.records import now
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog

MANIFEST = {"name": "net", "architecture": {"sequential": [{"type": "Linear", "in_features": 2, "out_features": 1}]}}


RANDOM = random.Random(0)  # seeded: true noise is some day the head of a real format


def nothing_left(artifacts: Artifacts, catalog: Catalog) -> bool:
    return list(artifacts.keys("staging")) == [] and catalog.jobs()[0] == []


@pytest.mark.parametrize(
    "content",
    [
        files.torch_zip(),
        files.LEGACY_MAGIC + b"\x80\x02M\xe9\x03.",
        files.safetensors(),
        files.ONNX,
        files.zipped(files.HUGGING_FACE, zipfile.ZIP_DEFLATED),
        files.tarred(files.HUGGING_FACE),
        files.tarred(files.HUGGING_FACE, "w:gz"),
        files.zipped({"m/data.pkl": b"", "m/constants.pkl": b"", "m/code/__torch__.py": b""}),
    ],
    ids=["torch", "legacy", "safetensors", "onnx", "folder.zip", "folder.tar", "folder.tgz", "torchscript"],
)
async def test_checkpoints_become_import_jobs(client: httpx.AsyncClient, artifacts: Artifacts, content: bytes) -> None:
    answer = await client.post("/v1/models", **upload(content, MANIFEST, "../we ird.pt"))
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert (job["kind"], job["status"], job["spec"]["name"]) == ("import", "queued", "net")
    assert job["spec"]["filename"] == "we_ird.pt"
    assert artifacts.get_bytes(job["spec"]["upload"]) == content
    assert (await client.get(answer.headers["location"])).json()["id"] == job["id"]


def linked_zip() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        info = zipfile.ZipInfo("bert/config.json")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return held.getvalue()


def linked_tar() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        info = tarfile.TarInfo("bert/config.json")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    return held.getvalue()


def bomb(size: int = 128 << 20) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("bert/config.json", "w") as member:
        for _ in range(size >> 20):
            member.write(b"\0" * (1 << 20))
    return held.getvalue()


def tar_bomb(size: int = 128 << 20) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        info = tarfile.TarInfo("bert/config.json")
        info.size = size
        archive.addfile(info, io.BytesIO(bytes(size)))
    return held.getvalue()


def large_header_tar() -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    return info.tobuf(tarfile.USTAR_FORMAT) + b"\0" * 1024


def overlapping() -> bytes:
    data = bytearray(files.zipped({f"bert/{i}": b"\1" * 1000 for i in range(3)} | {"config.json": b"{}"}))
    at = data.index(b"PK\x01\x02")
    data[at + 20 : at + 24] = (100_000).to_bytes(4, "little")
    return bytes(data)


PT2 = {"m/models/model.json": b"{}", "m/archive_format": b"pt2", "m/data/weights/weight_0": b"", "m/version": b"0"}
OLD_PT2 = {"serialized_exported_program.json": b"{}", "serialized_state_dict.pt": b"", "version": b"5.1"}


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 422, "empty_file"),
        (b"PK\x05\x06" + b"\0" * 18, 422, "empty_file"),
        (files.torch_zip()[:-100], 422, "truncated"),
        (files.torch_zip()[:40], 422, "truncated"),
        (files.safetensors()[:-1], 422, "truncated"),
        (files.safetensors(b"more"), 422, "truncated"),
        (files.ONNX[:-10], 422, "truncated"),
        (files.tarred(files.HUGGING_FACE)[:600], 422, "truncated"),
        (files.tarred(files.HUGGING_FACE, "w:gz")[:-60], 422, "truncated"),
        (RANDOM.randbytes(100_000), 415, "not_a_checkpoint"),
        (b"\x08\x03" + RANDOM.randbytes(5000), 415, "not_a_checkpoint"),
        (b"hello, world", 415, "not_a_checkpoint"),
        (b'{"json": 1}', 415, "not_a_checkpoint"),
        (b"a,b,c\n1,2,3\n", 415, "not_a_checkpoint"),
        (b"GGUF\x03\0\0\0", 415, "not_a_checkpoint"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, 415, "not_a_checkpoint"),
        (b"\x1c\0\0\0TFL3", 415, "not_a_checkpoint"),
        (b"\x1f\x8b\x08" + b"\1" * 500, 415, "not_a_checkpoint"),
        (gzip.compress(b"a,b,c" * 1000), 415, "not_a_checkpoint"),
        (files.BARE_PICKLE, 415, "pickle_refused"),
        (files.zipped({"a.txt": b"x"}), 415, "not_a_checkpoint"),
        (files.zipped({"x.npy": b"x"}), 415, "not_a_checkpoint"),
        (files.zipped({"config.json": b"{}", "model.weights.h5": b""}), 415, "not_a_checkpoint"),
        (files.zipped({"config.json": b"{}"}), 422, "bad_checkpoint"),
        (files.zipped({"a/model.onnx": files.ONNX}), 415, "not_a_checkpoint"),
        (files.zipped(PT2), 422, "pt2_refused"),
        (files.zipped(OLD_PT2), 422, "pt2_refused"),
        (files.zipped({"../config.json": b"{}"}), 422, "unsafe_archive"),
        (files.zipped({"/etc/config.json": b"{}"}), 422, "unsafe_archive"),
        (files.zipped({"C:\\config.json": b"{}"}), 422, "unsafe_archive"),
        (files.zipped({"a\\..\\..\\config.json": b"{}"}), 422, "unsafe_archive"),
        (files.tarred({"../config.json": b"{}"}), 422, "unsafe_archive"),
        (files.tarred({"/config.json": b"{}"}), 422, "unsafe_archive"),
        (linked_zip(), 422, "unsafe_archive"),
        (linked_tar(), 422, "unsafe_archive"),
        (overlapping(), 413, "archive_bomb"),
        (bomb(), 413, "archive_bomb"),
        (tar_bomb(), 413, "archive_bomb"),
        (large_header_tar(), 413, "archive_bomb"),
    ],
)
async def test_what_is_no_checkpoint(
    client: httpx.AsyncClient, artifacts: Artifacts, catalog: Catalog, content: bytes, status: int, code: str
) -> None:
    body = problem(await client.post("/v1/models", **upload(content, MANIFEST, "model.pt")), status, code)
    assert body["hint"]
    assert nothing_left(artifacts, catalog)
    assert not Path("/tmp/enginesmith-was-here").exists()


async def test_the_hint_for_pt2_names_the_export(client: httpx.AsyncClient) -> None:
    body = problem(await client.post("/v1/models", **upload(files.zipped(PT2), MANIFEST)), 422, "pt2_refused")
    assert "export(model, example)" in body["hint"]


@pytest.mark.parametrize(
    ("manifest", "status"),
    [
        ("{", 400),
        ('{"name": "a", "name": "b"}', 400),
        ('{"name": "a", "signature": ' + "[" * 10_000 + "]" * 10_000 + "}", 400),
        ("[]", 422),
        ({}, 422),
        ({"name": "a/b"}, 422),
        ({"name": "a" * 64}, 422),
        ({"name": "a", "colour": 1}, 422),
        ({"name": "a", "labels": []}, 422),
        ({"name": "a", "signature": {"inputs": []}}, 422),
        ({"name": "a", "signature": {"inputs": [{"name": "x", "dtype": "float31", "shape": [1]}]}}, 422),
        ({"name": "a", "preprocess": {"resize": [0, 3]}}, 422),
        ({"name": "a", "architecture": {"python": "import os"}}, 422),
        ({"name": "a", "architecture": {"graph": {}}}, 422),
        ({"name": "a", "architecture": {"sequential": []}}, 422),
        ({"name": "a", "architecture": {"sequential": [{"kind": "Linear"}]}}, 422),
        ({"name": "a", "architecture": {"library": "evil", "name": "x"}}, 422),
        ({"name": "a", "architecture": {"library": "timm", "name": "x", "sequential": []}}, 422),
    ],
)
async def test_bad_manifests(
    client: httpx.AsyncClient, artifacts: Artifacts, catalog: Catalog, manifest: Any, status: int
) -> None:
    problem(await client.post("/v1/models", **upload(files.ONNX, manifest)), status)
    assert nothing_left(artifacts, catalog)


async def test_parts(client: httpx.AsyncClient, artifacts: Artifacts, catalog: Catalog) -> None:
    text, part = '{"name": "net"}', ("m.onnx", files.ONNX)
    either = await client.post("/v1/models", files=[("file", part), ("manifest", ("m.json", text, "application/json"))])
    assert either.status_code == 202
    other = await client.post("/v1/models", files=[("manifest", (None, text)), ("file", part)])
    assert other.status_code == 202
    catalog.redis.flushall()
    artifacts.delete_all("staging")
    problem(await client.post("/v1/models", files={"file": part}), 422, "missing_part")
    problem(await client.post("/v1/models", files={"manifest": (None, text)}), 422, "missing_part")
    three = [("manifest", (None, text)), ("file", part), ("extra", (None, "1"))]
    problem(await client.post("/v1/models", files=three), 422, "unknown_part")
    twice = [("file", part), ("file", part), ("manifest", (None, text))]
    problem(await client.post("/v1/models", files=twice), 422, "doubled_part")
    problem(await client.post("/v1/models", json={"name": "net"}), 415)
    problem(await client.post("/v1/models"), 415)
    assert nothing_left(artifacts, catalog)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"garbage"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nPK'),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nA: " + b"b" * 100_000 + b"\r\n\r\n--x--\r\n"),
        ("multipart/form-data; boundary=" + "x" * 300, b"--x--\r\n"),
    ],
)
async def test_broken_multipart(
    client: httpx.AsyncClient, artifacts: Artifacts, catalog: Catalog, kind: str, body: bytes
) -> None:
    answer = await client.post("/v1/models", content=body, headers={"Content-Type": kind})
    problem(answer, 400, "bad_multipart")
    assert nothing_left(artifacts, catalog)


async def test_an_upload_over_the_limit(app: FastAPI, client: httpx.AsyncClient, artifacts: Artifacts) -> None:
    app.state.settings = app.state.settings.model_copy(update={"max_upload_bytes": 1000})
    problem(await client.post("/v1/models", **upload(files.torch_zip() + b"\0" * 1000, MANIFEST)), 413, "too_large")
    assert list(artifacts.keys("staging")) == []


async def test_the_same_key_gives_the_same_job(client: httpx.AsyncClient, artifacts: Artifacts) -> None:
    headers = {"Idempotency-Key": "k1"}
    asked = [client.post("/v1/models", **upload(files.ONNX, {"name": "a"}), headers=headers) for _ in range(4)]
    ids = {answer.json()["id"] for answer in await asyncio.gather(*asked)}
    assert len(ids) == 1
    assert len(list(artifacts.keys("staging"))) == 1
    other = await client.post("/v1/models", **upload(files.ONNX, {"name": "b"}), headers=headers)
    problem(other, 409, "idempotency_conflict")
    other = await client.post("/v1/models", **upload(files.safetensors(), {"name": "a"}), headers=headers)
    problem(other, 409, "idempotency_conflict")
    assert len(list(artifacts.keys("staging"))) == 1
    problem(await client.post("/v1/models", **upload(files.ONNX, {}), headers={"Idempotency-Key": "k" * 300}), 422)


async def test_a_failed_request_frees_its_key(client: httpx.AsyncClient, make_version: Any) -> None:
    headers = {"Idempotency-Key": "k2"}
    asked = {"kind": "convert", "model": "net", "target": "openvino"}
    problem(await client.post("/v1/jobs", json=asked, headers=headers), 404)
    make_version()
    assert (await client.post("/v1/jobs", json=asked, headers=headers)).status_code == 202


async def test_models_are_listed_and_looked_at(client: httpx.AsyncClient, make_version: Any, catalog: Catalog) -> None:
    for name in ("a", "b", "c"):
        make_version(name)
    make_version("a", parent="a@1", format="onnx", trainable=False, made_by={"job": "2", "spec": {"kind": "convert"}})
    catalog.put_evaluation("a@2", {"dataset": "d@1", "baseline": None, "value": float("nan")})
    first = (await client.get("/v1/models?limit=2")).json()
    assert [m["name"] for m in first["items"]] == ["a", "b"]
    second = (await client.get("/v1/models", params={"cursor": first["next_cursor"]})).json()
    assert ([m["name"] for m in second["items"]], second["next_cursor"]) == (["c"], None)
    model = (await client.get("/v1/models/a")).json()
    assert [v["ref"] for v in model["versions"]] == ["a@1", "a@2"]
    version = (await client.get("/v1/models/a/versions/2")).json()
    assert version == model["versions"][1]
    wanted = (
        "ref name version format files bytes signature parameters macs sparsity metrics parent made_by built_for"
        " verdict created_at evaluations labels"
    )
    assert set(wanted.split()) <= set(version)
    assert "folder" not in version
    assert version["evaluations"] == [{"dataset": "d@1", "baseline": None, "value": None}]
    tree = (await client.get("/v1/models/a/lineage")).json()["tree"]
    assert [(n["ref"], [c["ref"] for c in n["children"]]) for n in tree] == [("a@1", ["a@2"])]
    assert tree[0]["children"][0]["kind"] == "convert"
    for path in ("x", "x/lineage", "a/versions/3", "a/versions/0", "x/versions/1", "a/versions/1/files/nope"):
        problem(await client.get(f"/v1/models/{path}"), 404)
    problem(await client.get("/v1/models/a/versions/one"), 422)


async def test_files_come_whole_and_in_ranges(client: httpx.AsyncClient, make_version: Any) -> None:
    make_version("a")
    url = "/v1/models/a/versions/1/files/model.onnx"
    whole = await client.get(url)
    assert (whole.content, whole.headers["content-length"], whole.headers["accept-ranges"]) == (
        b"0123456789",
        "10",
        "bytes",
    )
    assert whole.headers["etag"] == f'"{"a" * 64}"'
    head = await client.head(url)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "10")
    for asked, content, told in [
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=0-99", b"0123456789", "bytes 0-9/10"),
        ("bytes=-99", b"0123456789", "bytes 0-9/10"),
    ]:
        part = await client.get(url, headers={"Range": asked})
        assert (part.status_code, part.content, part.headers["content-range"]) == (206, content, told)
    for asked in ("bytes=10-", "bytes=-0", "bytes=99-100"):
        answer = await client.get(url, headers={"Range": asked})
        problem(answer, 416)
        assert answer.headers["content-range"] == "bytes */10"
    for asked in ("bytes=5-2", "lines=1-2", "bytes=0-1,3-4", "bytes=x"):
        assert (await client.get(url, headers={"Range": asked})).status_code == 200
    assert (await client.get(url, headers={"If-None-Match": whole.headers["etag"]})).status_code == 304
    stale = await client.get(url, headers={"Range": "bytes=2-4", "If-Range": '"other"'})
    assert (stale.status_code, stale.content) == (200, b"0123456789")
    for path in ("../manifest.json", "..%2fmanifest.json", "%2e%2e/manifest.json"):
        problem(await client.get(f"/v1/models/a/versions/1/files/{path}"), 404)


async def test_a_deployed_version_stays(
    client: httpx.AsyncClient, make_version: Any, catalog: Catalog, artifacts: Artifacts
) -> None:
    for _ in range(3):
        make_version("a")
    catalog.put_deployment(
        Deployment(
            name="d",
            model="a@1",
            canary={"model": "a@2", "percent": 5},
            created_at=now(),
            updated_at=now(),  # type: ignore[arg-type]
        ),
        was_generation=None,
    )
    problem(await client.delete("/v1/models/a/versions/1"), 409, "deployed")
    problem(await client.delete("/v1/models/a/versions/2"), 409, "deployed")
    assert (await client.delete("/v1/models/a/versions/3")).status_code == 204
    problem(await client.delete("/v1/models/a/versions/3"), 404)
    problem(await client.get("/v1/models/a/versions/3"), 404)
    assert make_version("a").version == 4


async def test_settings_are_as_given(app: FastAPI, settings: Settings) -> None:
    assert app.state.settings is settings


async def test_the_page_about_the_api(client: httpx.AsyncClient) -> None:
    page = (await client.get("/openapi.json")).json()
    for path, methods in page["paths"].items():
        for method, told in methods.items():
            if method == "post" and path in ("/v1/models", "/v1/datasets", "/v1/jobs"):
                (media,) = told["requestBody"]["content"].values()
                assert media["examples"], path
            if path.startswith("/v1/"):
                assert any("application/problem+json" in r.get("content", {}) for r in told["responses"].values()), path
    assert (await client.get("/docs")).status_code == 200


def _refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (v for k, v in value.items() if k == "$ref")
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _refs(child)


async def test_the_page_refers_to_nothing_that_is_not_there(client: httpx.AsyncClient) -> None:
    page = (await client.get("/openapi.json")).json()
    for ref in _refs(page):
        found = page
        for part in ref.removeprefix("#/").split("/"):
            found = found.get(part, {})
        assert found, ref


async def test_the_page_names_headers_and_kinds_of_answers(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]

    def headers(path: str, method: str) -> set[str]:
        return {p["name"] for p in paths[path][method].get("parameters", ()) if p["in"] == "header"}

    def media(path: str) -> set[str]:
        return set(paths[path]["get"]["responses"]["200"]["content"])

    for path in ("/v1/models", "/v1/jobs", "/v1/jobs/{id}/retry"):
        assert headers(path, "post") == {"Prefer", "Idempotency-Key"}
    assert headers("/v1/jobs/{id}", "get") == headers("/v1/deployments/{name}", "put") == {"Prefer"}
    assert headers("/v1/jobs/{id}/events", "get") == {"Last-Event-ID"}
    file = "/v1/models/{name}/versions/{version}/files/{path}"
    assert headers(file, "get") == {"Range"}
    assert media(file) == {"application/octet-stream"}
    assert "206" in paths[file]["get"]["responses"]
    assert media("/v1/jobs/{id}/events") == {"text/event-stream"}
    assert media("/metrics") == {"text/plain"}
    assert "202" in paths["/v1/jobs/{id}/cancel"]["post"]["responses"]
