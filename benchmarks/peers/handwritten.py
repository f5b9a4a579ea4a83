"""What a very good engineer writes by hand: FastAPI, bytes → numpy → the engine's thread → bytes; one run a request."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.peers import Ask, Options, Rows, Sample, flat, json_ask, options
from benchmarks.peers.engine import Engine, decode

PACKAGES: tuple[str, ...] = ()
_PATHS = {"json": "/json", "binary": "/binary", "jpeg": "/jpeg"}


def ask(workload: str, sample: Sample) -> Ask | None:
    kind = workload.rpartition("-")[2]
    if kind == "json":
        return json_ask("/json", b'{"inputs":%b}' % sample.text)
    body = sample.x.tobytes() if kind == "binary" else sample.jpeg
    return Ask(_PATHS[kind], body, {"Content-Type": "application/octet-stream"})


def answer(body: bytes) -> Rows:
    return flat(orjson.loads(body)["outputs"]) if body.startswith(b"{") else np.frombuffer(body, np.float32)


def command(python: str, given: Options) -> list[str]:
    return given.command(python, __name__)


def serve(given: Options, infer: Callable[[Rows], Awaitable[Rows]], *, tuned: bool = False) -> None:
    """infer: one request's rows [1, …] → [1, classes]. tuned: with the garbage collector kept off what lives as long as
    the process, as in ours: a third of the CPU."""
    app = FastAPI(openapi_url=None)
    shape = (1, *given.shape)
    decoding = ThreadPoolExecutor(os.cpu_count())

    @app.post("/json")
    async def by_json(request: Request) -> Response:
        x = np.array(orjson.loads(await request.body())["inputs"], np.float32).reshape(shape)
        content = orjson.dumps({"outputs": await infer(x)}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(content, media_type="application/json")

    @app.post("/binary")
    async def by_bytes(request: Request) -> Response:
        x = np.frombuffer(await request.body(), np.float32).reshape(shape)
        return Response((await infer(x)).tobytes(), media_type="application/octet-stream")

    @app.post("/jpeg")
    async def by_jpeg(request: Request) -> Response:
        body = await request.body()
        x = await asyncio.get_running_loop().run_in_executor(decoding, decode, body)
        content = orjson.dumps({"outputs": await infer(x[None])}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(content, media_type="application/json")

    if tuned:
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 100)
    uvicorn.run(
        app, port=given.port, loop="uvloop", http="httptools", proxy_headers=False, access_log=False,
        log_level="warning",
    )  # fmt: skip


def main() -> None:
    given = options()
    engine = Engine(given.onnx, given.threads)
    engine.warm(given.shape, 1)
    thread = ThreadPoolExecutor(1)

    async def infer(x: Rows) -> Rows:
        return await asyncio.get_running_loop().run_in_executor(thread, engine, x)

    serve(given, infer)


if __name__ == "__main__":
    main()
