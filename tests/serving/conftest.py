"""The whole app in this process over a real store, and small engines to deploy in it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from fastapi import FastAPI
from onnx import TensorProto, helper

from app import runtimes
from app.domain.records import Made, Signature, Tensor, Version, now
from app.main import create_app
from app.runtimes import Arrays, BuildOptions, Engine
from app.settings import Settings
from app.storage import registry
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog

PATIENCE_S = 120.0  # how long what must come is waited for: no statement about speed
Publish = Callable[..., Version]
Serve = Callable[[Settings], AbstractAsyncContextManager[tuple[FastAPI, httpx.AsyncClient]]]


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what must come, however busy the machine is."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


class Held:
    """An engine whose runs wait until the test opens the gate. entered: a run has come to it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.signature = engine.signature
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.runs = 0

    def infer(self, inputs: Arrays) -> dict[str, Any]:
        self.runs += 1
        self.entered.set()
        assert self.gate.wait(PATIENCE_S)
        return self.engine.infer(inputs)

    def close(self) -> None:
        self.engine.close()


@pytest.fixture
def publish(tmp_path: Path, settings: Settings, artifacts: Artifacts, catalog: Catalog) -> Publish:
    """Publishes an engine that multiplies x [rows, 3] by `factor`."""
    count = 0

    def make(name: str = "net", factor: float = 1.0, format: str = "onnxruntime", **fields: Any) -> Version:
        nonlocal count
        count += 1
        graph = helper.make_graph(
            [helper.make_node("Mul", ["x", "f"], ["logits"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
            [onnx.numpy_helper.from_array(np.array(factor, np.float32), "f")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        source, folder = tmp_path / f"{count}.onnx", tmp_path / f"engine{count}"
        source.write_bytes(model.SerializeToString())
        folder.mkdir()
        built_for = runtimes.get(format).build(source, folder, BuildOptions(), lambda share, phase: None)
        prefix = f"models/{name}/files/job{count}-1"
        files, size = registry.put_files(artifacts, folder, prefix)
        draft = {
            "name": name,
            "version": 1,
            "format": format,
            "folder": prefix,
            "files": files,
            "bytes": size,
            "signature": Signature(
                inputs=(Tensor(name="x", shape=(-1, 3)),),
                outputs=(Tensor(name="logits", shape=(-1, 3)),),
            ),
            "made_by": Made(job=f"job{count}", spec={}),
            "built_for": built_for,
            "labels": ("a", "b", "c"),
            "details": {"precision": "fp32", "max_batch": 8},
            "created_at": now(),
        }
        return registry.publish_version(artifacts, catalog, Version.model_validate(draft | fields))

    return make


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=PATIENCE_S) as client,
    ):
        await until(lambda: app.state.fleet._known)  # what is wanted: before that, nothing is 404
        yield app, client


@pytest.fixture
def serve() -> Serve:
    return serving


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    async with serving(settings) as (made, client):
        made.state.client = client
        yield made


@pytest.fixture
def client(app: FastAPI) -> httpx.AsyncClient:
    """Speaks to `app`."""
    found: httpx.AsyncClient = app.state.client
    return found
