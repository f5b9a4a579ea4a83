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
    """Publishes an engine that multiplies x [rows, 3] by `factor`.
    fragile: it fails, by its own fault, on a row with a number above 100. ballast: bytes of weights that do nothing."""
    count = 0

    def make(
        name: str = "net",
        factor: float = 1.0,
        format: str = "onnxruntime",
        fragile: bool = False,
        ballast: int = 0,
        **fields: Any,
    ) -> Version:
        nonlocal count
        count += 1
        nodes = [helper.make_node("Mul", ["x", "f"], ["scaled" if fragile or ballast else "logits"])]
        constants = {"f": np.array(factor, np.float32)}
        if fragile:  # more columns than there are numbers
            constants |= {"many": np.array(100, np.float32), "columns": np.array([-1, 3], np.int64)}
            constants |= {"one": np.array([0, 1_000_003], np.int64)}
            nodes += [
                helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
                helper.make_node("Greater", ["largest", "many"], ["is_many"]),
                helper.make_node("Cast", ["is_many"], ["more"], to=TensorProto.INT64),
                helper.make_node("Mul", ["more", "one"], ["wider"]),
                helper.make_node("Add", ["columns", "wider"], ["shape"]),
                helper.make_node("Reshape", ["scaled", "shape"], ["shaped"]),
                helper.make_node("Reshape", ["shaped", "columns"], ["logits"]),
            ]
        if ballast:
            constants |= {"table": np.zeros((ballast // 12, 3), np.float32), "zero": np.array(0, np.float32)}
            nodes += [
                helper.make_node("ReduceMax", ["x"], ["largest"], axes=[1], keepdims=0),
                helper.make_node("Mul", ["largest", "zero"], ["nothing"]),
                helper.make_node("Cast", ["nothing"], ["at"], to=TensorProto.INT64),
                helper.make_node("Gather", ["table", "at"], ["found"]),
                helper.make_node("Add", ["scaled", "found"], ["logits"]),
            ]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
            [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()],
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
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=30) as client,
    ):
        await app.state.fleet.settled()
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
