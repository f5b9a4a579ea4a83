"""Triton: the tritonserver that nvidia-pytriton carries, dynamic batching without a delay, OpenVINO in its Python."""

from __future__ import annotations

import json
import os
import signal
import sysconfig
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.peers import MAX_BATCH, Ask, Options, Rows, Sample, flat, json_ask, options
from benchmarks.peers.engine import Engine, decode

PACKAGES: tuple[str, ...] = ("nvidia-pytriton==0.7.0", "numpy<2", "openvino==2026.4.1", "pillow")


def ask(workload: str, sample: Sample) -> Ask | None:
    kind = workload.rpartition("-")[2]
    if kind == "json":
        return json_ask(
            "/v2/models/peer/infer",
            b'{"inputs":[{"name":"x","datatype":"FP32","shape":%b,"data":%b}]}'
            % (json.dumps(sample.x.shape).encode(), sample.text),
        )
    if kind == "binary":
        return binary("peer", "x", "FP32", sample.x.shape, sample.x.tobytes())
    length = len(sample.jpeg).to_bytes(4, "little")
    return binary("jpeg", "jpeg", "BYTES", (1, 1), length + sample.jpeg)


def binary(model: str, name: str, datatype: str, shape: tuple[int, ...], content: bytes) -> Ask:
    """The Open Inference Protocol with its binary extension, as tritonclient sends it."""
    tensor = {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(content)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}, separators=(",", ":")).encode()
    told = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Ask(f"/v2/models/{model}/infer", head + content, told)


def answer(body: bytes) -> Rows:
    """JSON, or JSON with one binary output of float32 behind it."""
    told, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    output = told["outputs"][0]
    return flat(output["data"]) if "data" in output else np.frombuffer(body[end:], np.float32)


def command(python: str, given: Options) -> list[str]:
    # tritonserver's Python backend looks for libpython where the loader does.
    return ["env", f"LD_LIBRARY_PATH={sysconfig.get_config_var('LIBDIR')}", *given.command(python, __name__)]


def main() -> None:
    from pytriton.decorators import batch
    from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig

    given = options()
    engine = Engine(given.onnx, given.threads)
    engine.warm(given.shape)
    decoding = ThreadPoolExecutor(os.cpu_count())
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())

    @batch  # type: ignore[untyped-decorator]
    def infer(x: Rows) -> dict[str, Rows]:
        return {"logits": engine(x)}

    @batch  # type: ignore[untyped-decorator]
    def infer_images(jpeg: Any) -> dict[str, Rows]:
        return {"logits": engine(np.stack(list(decoding.map(decode, jpeg[:, 0]))))}

    config = TritonConfig(
        http_address="127.0.0.1", http_port=given.port, allow_grpc=False, allow_metrics=False, log_verbose=0,
        grpc_port=given.port + 1, metrics_port=given.port + 2,
    )  # fmt: skip
    plan = ModelConfig(max_batch_size=MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=0))
    output = [Tensor(name="logits", dtype=np.float32, shape=(-1,))]
    models: list[tuple[str, Callable[..., Any], Any]] = [
        ("peer", infer, Tensor(name="x", dtype=np.float32, shape=given.shape))
    ]
    if given.model == "resnet":
        models.append(("jpeg", infer_images, Tensor(name="jpeg", dtype=bytes, shape=(1,))))
    with Triton(config=config) as triton:
        for name, function, tensor in models:
            triton.bind(name, function, inputs=[tensor], outputs=output, config=plan, strict=False)
        triton.run()
        stopped.wait()


if __name__ == "__main__":
    main()
