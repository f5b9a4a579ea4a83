"""What tests over HTTP share: uploads as a client sends them, and the look of a problem body."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx
import numpy as np


def npz(**arrays: Any) -> bytes:
    held = io.BytesIO()
    np.savez(held, **{name: np.asarray(value) for name, value in arrays.items()})
    return held.getvalue()


def upload(file: bytes, manifest: Any, filename: str = "file") -> dict[str, Any]:
    """Keyword arguments of a multipart POST."""
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    return {"files": {"file": (filename, file, "application/octet-stream")}, "data": {"manifest": text}}


async def push_dataset(client: httpx.AsyncClient, name: str = "set", rows: int = 50, **arrays: Any) -> dict[str, Any]:
    """A small data set that fits `make_version`."""
    random = np.random.default_rng(1)
    arrays = {
        "x": random.random((rows, 1, 28, 28), dtype=np.float32),
        "y": np.arange(rows) % 10,
    } | arrays
    answer = await client.post("/v1/datasets", **upload(npz(**arrays), {"name": name, "kind": "arrays"}))
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def problem(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The problem body of an answer, checked for what every one must have."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["instance"] == answer.request.url.path
    assert body["type"].startswith("urn:enginesmith:problem:")
    assert body["title"]
    assert body["detail"]
    assert body["hint"]
    if code:
        assert body["code"] == code, body
    return body
