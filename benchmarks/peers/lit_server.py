"""LitServe's side, in its own environment: the API class that its worker process runs, and the server."""

from __future__ import annotations

import base64
from typing import Any

import litserve
import numpy as np

from benchmarks.peers import MAX_BATCH, Options, Rows, options
from benchmarks.peers.engine import Engine, decode


class Api(litserve.LitAPI):
    def __init__(self, given: Options) -> None:
        # A timeout of 0 has the worker spin on its queue; so it waits for at most a millisecond.
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=0.001)
        self.given = given

    def setup(self, device: str) -> None:
        self.engine = Engine(self.given.onnx, self.given.threads)
        self.engine.warm(self.given.shape)

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe would read an annotation
        if "binary" in request:
            return np.frombuffer(base64.b64decode(request["binary"]), np.float32).reshape(self.given.shape)
        if "jpeg" in request:
            return decode(base64.b64decode(request["jpeg"]))
        return np.array(request["inputs"], np.float32).reshape(self.given.shape)

    def predict(self, x: Rows) -> Rows:
        return self.engine(x)

    def unbatch(self, output: Rows) -> list[Rows]:
        return list(output)

    def encode_response(self, output: Rows) -> dict[str, Any]:
        return {"outputs": output.tolist()}


def main() -> None:
    given = options()
    server = litserve.LitServer(Api(given), accelerator="cpu", workers_per_device=1, timeout=60, fast_queue=True)
    server.run(port=given.port, num_api_servers=1, log_level="warning", generate_client_file=False, access_log=False)


if __name__ == "__main__":
    main()
