"""The app in this process over a real store, and hand-made versions to work on."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.domain.records import Made, Metrics, Signature, Tensor, Version, now
from app.main import create_app
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.registry import publish_version

MakeVersion = Callable[..., Version]


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    made = create_app(settings)
    async with made.router.lifespan_context(made):
        yield made


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=240) as opened:
        yield opened


@pytest.fixture
def make_version(artifacts: Artifacts, catalog: Catalog) -> MakeVersion:
    """Publishes a version of a small classifier; fields can be replaced."""
    jobs = itertools.count(1)

    def make(name: str = "net", **fields: Any) -> Version:
        # A number, not the time: two versions may be made within a millisecond, and a job publishes one only.
        folder = f"models/{name}/files/j{next(jobs)}-1"
        content = fields.pop("content", b"0123456789")
        artifacts.put_bytes(content, f"{folder}/model.onnx")
        signature = Signature(
            inputs=(Tensor(name="x", shape=(-1, 1, 28, 28)),), outputs=(Tensor(name="logits", shape=(-1, 10)),)
        )
        draft = {
            "name": name,
            "version": 1,
            "format": "torch",
            "folder": folder,
            "files": {"model.onnx": "a" * 64},
            "bytes": len(content),
            "signature": signature.model_dump(),
            "metrics": Metrics(layer_sparsity={"conv1": 0.0, "fc": 0.0}).model_dump(),
            "made_by": Made(job=f"job-{folder}", spec={"kind": "import"}).model_dump(),
            "trainable": True,
            "created_at": now(),
        }
        return publish_version(artifacts, catalog, Version.model_validate(draft | fields))

    return make
