"""The engine that every contestant runs: the same library, options and threads, and the same image preprocessing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import MAX_BATCH, Rows

RESIZE, CROP = 256, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SCALE = (1 / (255 * np.asarray(STD, np.float32)))[:, None, None]
_SHIFT = (np.asarray(MEAN, np.float32) / np.asarray(STD, np.float32))[:, None, None]


class Engine:
    """OpenVINO in fp32 on the CPU, one request at a time. Not thread-safe."""

    def __init__(self, onnx: Path, threads: int) -> None:
        import openvino as ov

        core = ov.Core()
        compiled = core.compile_model(
            core.read_model(str(onnx)),
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32",
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": threads,
                "ENABLE_CPU_PINNING": False,
            },
        )
        self._tensor: Any = ov.Tensor
        self._request: Any = compiled.create_infer_request()

    def __call__(self, x: Rows) -> Rows:
        """x: [rows, …]; gives [rows, classes], which the caller may keep."""
        x = np.require(x, np.float32, ("C", "W"))
        self._request.set_input_tensor(0, self._tensor(x, shared_memory=True))
        self._request.infer()
        return np.array(self._request.get_output_tensor(0).data)

    def warm(self, shape: tuple[int, ...], max_batch: int = MAX_BATCH) -> None:
        """The sizes that occur, once: the first run of a size costs milliseconds. The checks before any measurement
        and a second of load then bring about the rest."""
        for rows in (*range(1, 17), 32, max_batch):
            if rows <= max_batch:
                self(np.zeros((rows, *shape), np.float32))


def decode(jpeg: bytes) -> Rows:
    """An encoded image → [3, 224, 224]: the shorter side to 256, the middle cut out, normalized."""
    from PIL import Image

    with Image.open(io.BytesIO(jpeg)) as image:
        picture = image.convert("RGB")
    width, height = picture.size
    share = RESIZE / min(width, height)
    size = (max(1, round(width * share)), max(1, round(height * share)))
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - CROP) // 2, (size[1] - CROP) // 2
    pixels = np.asarray(picture.crop((left, top, left + CROP, top + CROP)))
    row: Rows = np.multiply(pixels.transpose(2, 0, 1), _SCALE, dtype=np.float32, order="C")
    np.subtract(row, _SHIFT, out=row)
    return row
