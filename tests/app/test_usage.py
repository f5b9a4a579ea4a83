"""What is stored, and what is refused before there is no room."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
from collections import namedtuple
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest
from asking import problem
from checkpoints_for_app import zipped
from keyed import bearer, becomes, issue, replica

from app.settings import Settings

Disk = namedtuple("Disk", "total used free")


def npz(rows: int = 60) -> bytes:
    held = io.BytesIO()
    np.savez(held, x=np.zeros((rows, 4), np.float32), y=np.arange(rows) % 3)
    return held.getvalue()


async def send(client: httpx.AsyncClient, name: str = "d", headers: dict[str, str] | None = None) -> httpx.Response:
    parts = {
        "manifest": (None, json.dumps({"name": name, "kind": "arrays"}), "application/json"),
        "file": ("d.npz", npz(), "application/octet-stream"),
    }
    return await client.post("/v1/datasets", files=parts, headers=headers, timeout=60)


async def test_what_is_stored_is_told(client: httpx.AsyncClient) -> None:
    assert (await send(client)).status_code == 201
    found = (await client.get("/v1/usage")).json()
    held = found["store"]["by"]["datasets"]
    assert held["objects"] >= 3
    assert found["store"]["bytes"] == sum(of["bytes"] for of in found["store"]["by"].values()) > 1000
    assert found["datasets"] == {"versions": 1}
    assert found["jobs"] == {"kept": 0, "open": 0}
    assert found["key"] is None
    assert 0 < found["disk"]["reserve_bytes"] <= found["disk"]["total_bytes"] / 10
    assert found["redis"]["bytes"] > 0


async def test_a_disk_that_is_nearly_full_takes_nothing_more(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await send(client)).status_code == 201
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Disk(10 << 30, 9 << 30, 1 << 29))
    assert problem(await send(client, "more"), 507)["code"] == "disk_nearly_full"
    job = await client.post("/v1/jobs", json={"kind": "train", "model": "m@1", "dataset": "d@1"})
    assert problem(job, 507)["code"] == "disk_nearly_full"
    assert (await client.get("/v1/datasets/d")).status_code == 200
    assert (await client.delete("/v1/datasets/d")).status_code == 204


async def test_the_store_takes_no_more_than_it_may(settings: Settings) -> None:
    async with replica(settings.model_copy(update={"store_bytes": 10})) as client:
        refused = await send(client)
        assert problem(refused, 507)["code"] == "store_quota"


async def test_what_a_key_has_made_is_counted_and_bounded(settings: Settings) -> None:
    key, token = issue(settings, bytes=3000)
    _, other = issue(settings)
    async with replica(settings) as client:
        await becomes(client, 200, bearer(token))
        made = await send(client, headers=bearer(token))
        assert made.status_code == 201, made.text
        assert made.json()["key"] == key.id
        refused = problem(await send(client, headers=bearer(token)), 507)
        assert refused["code"] == "key_quota"
        assert (await send(client, "another", bearer(other))).status_code == 201
        mine = (await client.get("/v1/usage", headers=bearer(token))).json()
        assert mine["key"]["id"] == key.id
        assert mine["key"]["bytes"] == made.json()["bytes"]
        assert mine["key"]["limits"] == {"bytes": 3000}
        assert (await client.delete("/v1/datasets/d", headers=bearer(token))).status_code == 204
        assert (await send(client, headers=bearer(token))).status_code == 201


async def test_uploads_that_come_together_are_counted_together(settings: Settings) -> None:
    _, token = issue(settings, bytes=5000)

    async def push(client: httpx.AsyncClient, name: str) -> httpx.Response:
        file = {
            "file": (
                "x.pt",
                zipped({"net/data.pkl": b"\x80\x02}q\x00.", "net/version": b"3\n", "net/data/0": bytes(1000)}),
            )
        }
        manifest = {"manifest": json.dumps({"name": name})}
        return await client.post("/v1/models", headers=bearer(token), files=file, data=manifest)

    async with replica(settings) as client:
        await becomes(client, 200, bearer(token))
        answers = await asyncio.gather(*(push(client, f"m{n}") for n in range(8)))
        taken = [answer for answer in answers if answer.status_code == 202]
        assert {problem(a, 507)["code"] for a in answers if a.status_code != 202} == {"key_quota"}
        while (answer := await push(client, f"n{len(taken)}")).status_code == 202:  # they may have refused one another
            taken.append(answer)
        assert problem(answer, 507)["code"] == "key_quota"
        assert len(taken) == 5000 // taken[0].json()["spec"]["bytes"]  # their imports wait: nothing is published yet
        await client.post(f"/v1/jobs/{taken[0].json()['id']}/cancel", headers=bearer(token))
        assert (await push(client, "more")).status_code == 202


async def test_what_a_data_set_unpacks_to_is_what_counts(settings: Settings) -> None:
    _, token = issue(settings, bytes=5000)
    held = io.BytesIO()
    np.savez_compressed(held, x=np.zeros((900, 4), np.float32), y=np.arange(900) % 3)
    assert held.tell() < 5000
    parts = {
        "manifest": (None, json.dumps({"name": "d", "kind": "arrays"}), "application/json"),
        "file": ("d.npz", held.getvalue(), "application/octet-stream"),
    }
    async with replica(settings) as client:
        await becomes(client, 200, bearer(token))
        refused = await client.post("/v1/datasets", files=parts, headers=bearer(token), timeout=60)
        assert problem(refused, 507)["code"] == "key_quota"
        assert list((settings.data / "scratch").iterdir()) == []


async def test_a_disk_that_fills_up_meanwhile_ends_an_upload(
    client: httpx.AsyncClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.npz"\r\n\r\n'
        for _ in range(64):
            sent += 1
            if sent == 20:
                monkeypatch.setattr(shutil, "disk_usage", lambda place: Disk(10 << 30, 9 << 30, 1 << 29))
            yield bytes(1 << 20)
        yield b"\r\n--b--\r\n"

    said = {"Content-Type": "multipart/form-data; boundary=b"}
    refused = await client.post("/v1/datasets", content=body(), headers=said, timeout=60)
    assert problem(refused, 507)["code"] == "disk_nearly_full"
    assert list((settings.data / "scratch").iterdir()) == []


async def test_only_admins_see_what_others_hold(settings: Settings) -> None:
    key, token = issue(settings, scopes=("write",))
    _, admin = issue(settings, scopes=("admin",))
    async with replica(settings) as client:
        await becomes(client, 200, bearer(token))
        assert (await send(client, headers=bearer(token))).status_code == 201
        assert "keys" not in (await client.get("/v1/usage", headers=bearer(token))).json()
        found = (await client.get("/v1/usage", headers=bearer(admin))).json()
        assert set(found["keys"]) == {key.id}
