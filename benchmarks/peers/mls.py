"""MLServer: a custom runtime with adaptive batching, in the server's own process. Bytes travel in JSON as base64."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.peers import MAX_BATCH, Ask, Options, Rows, Sample, base64_text, flat, json_ask

PACKAGES: tuple[str, ...] = ("mlserver==1.7.1", "openvino==2026.4.1", "pillow")
_PATH = "/v2/models/peer/infer"


def ask(workload: str, sample: Sample) -> Ask | None:
    kind = workload.rpartition("-")[2]
    if kind == "json":
        shape = json.dumps(sample.x.shape).encode()
        return json_ask(
            _PATH, b'{"inputs":[{"name":"json","datatype":"FP32","shape":%b,"data":%b}]}' % (shape, sample.text)
        )
    content = base64_text(sample.x.tobytes() if kind == "binary" else sample.jpeg)
    told = b'{"name":"%b","datatype":"BYTES","shape":[1,1],"data":["%b"]}' % (kind.encode(), content)
    return json_ask(_PATH, b'{"inputs":[%b]}' % told)


def answer(body: bytes) -> Rows:
    return flat(json.loads(body)["outputs"][0]["data"])


def command(python: str, given: Options) -> list[str]:
    told = {"onnx": str(given.onnx), "threads": given.threads, "model": given.model}
    settings = {
        "host": "127.0.0.1", "http_port": given.port, "grpc_port": given.port + 1, "metrics_port": given.port + 2,
        "parallel_workers": 0, "debug": False,
    }  # fmt: skip
    model = {
        "name": "peer", "implementation": "benchmarks.peers.mls_model.Peer",
        "max_batch_size": MAX_BATCH, "max_batch_time": 0.001, "parameters": {"extra": told},
    }  # fmt: skip
    (given.folder / "settings.json").write_text(json.dumps(settings))
    (given.folder / "model-settings.json").write_text(json.dumps(model))
    return ["env", "PYTHONPATH=.", str(Path(python).with_name("mlserver")), "start", str(given.folder)]
