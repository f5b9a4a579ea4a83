"""BentoML's side: the service that `bentoml serve` loads, in its own environment."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import bentoml
import numpy as np

from benchmarks.peers import MAX_BATCH, SHAPES, Rows
from benchmarks.peers.engine import Engine, decode

# With a shorter patience BentoML answers 503 as soon as it expects a wait.
_BATCHING = {"batchable": True, "max_batch_size": MAX_BATCH, "max_latency_ms": 10_000}
_TOLD = json.loads(os.environ["BENCH_PEER"])
_SHAPE = SHAPES[_TOLD["model"]]


@bentoml.service(workers=1, traffic={"timeout": 60, "concurrency": 1024}, logging={"access": {"enabled": False}})
class Peer:
    def __init__(self) -> None:
        self.engine = Engine(Path(_TOLD["onnx"]), _TOLD["threads"])
        self.engine.warm(_SHAPE)

    @bentoml.api(**_BATCHING)
    def by_json(self, inputs: np.ndarray) -> np.ndarray:
        return self._run(np.asarray(inputs, np.float32).reshape(-1, *_SHAPE))

    @bentoml.api(**_BATCHING)
    def by_binary(self, contents: list[str]) -> np.ndarray:
        return self._run(np.stack([np.frombuffer(base64.b64decode(c), np.float32).reshape(_SHAPE) for c in contents]))

    @bentoml.api(**_BATCHING)
    def by_jpeg(self, contents: list[str]) -> np.ndarray:
        return self._run(np.stack([decode(base64.b64decode(c)) for c in contents]))

    def _run(self, x: Rows) -> Rows:
        return self.engine(x)
