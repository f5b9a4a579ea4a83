"""MLServer's side: the model class that it loads, in its own environment."""

from __future__ import annotations

import asyncio
import base64
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from benchmarks.peers import SHAPES, Rows
from benchmarks.peers.engine import Engine, decode


class Peer(MLModel):
    """Without @decode_args, which does not go together with batching."""

    async def load(self) -> bool:
        told: dict[str, Any] = self.settings.parameters.extra
        self._shape = SHAPES[told["model"]]
        self._engine = Engine(Path(told["onnx"]), told["threads"])
        self._engine.warm(self._shape)
        self._thread = ThreadPoolExecutor(1)
        self._decoding = ThreadPoolExecutor(os.cpu_count())
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        given = payload.inputs[0]
        data: list[Any] = getattr(given.data, "root", given.data)
        rows = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, given.name, data)
        output = ResponseOutput(name="logits", shape=list(rows.shape), datatype="FP32", data=rows.ravel().tolist())
        return InferenceResponse(model_name=self.name, outputs=[output])

    def _run(self, kind: str, data: list[Any]) -> Rows:
        if kind == "json":
            return self._engine(np.asarray(data, np.float32).reshape(-1, *self._shape))
        contents = [base64.b64decode(text) for text in data]
        if kind == "jpeg":
            return self._engine(np.stack(list(self._decoding.map(decode, contents))))
        return self._engine(np.stack([np.frombuffer(c, np.float32).reshape(self._shape) for c in contents]))
