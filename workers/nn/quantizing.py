"""Quantizing one network: what it starts from, how near to it a quantized graph comes, and what is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
import torch

from app import runtimes
from app.domain.records import Version
from app.domain.specs import QuantizeSpec
from app.errors import Unprocessable
from app.runtimes import LoadOptions
from workers.context import Context
from workers.nn import ptq, qdq
from workers.nn.data import Data, Rows
from workers.nn.predict import engine, sensible_batch
from workers.nn.ptq import Recipe
from workers.nn.quality import Answers, Predict, answers
from workers.nn.requests import Array, Request

RANKED_ROWS, CALIBRATED = 64, 16
BATCH = 64


@dataclass(frozen=True)
class Requests:
    """Rows as inputs by name, read when they are asked for."""

    rows: Rows
    name: str
    at_once: int

    def __len__(self) -> int:
        return len(self.rows.cuts(self.at_once))

    def __iter__(self) -> Iterator[Request]:
        for x, _ in self.rows.batches(self.at_once):
            yield {self.name: np.ascontiguousarray(x.numpy())}


@dataclass
class Network:
    """A float graph, ready, and what it is quantized with. rows: of the training split; labels: node → what it is
    called; reference: the float network's outputs for the first rows."""

    spec: QuantizeSpec
    version: Version
    ctx: Context
    plain: Any
    rows: Rows
    labels: dict[str, str] = field(default_factory=dict)
    reference: Array | None = None

    def __post_init__(self) -> None:
        self.labels = qdq.labels(self.plain)

    def requests(self) -> Requests:
        """A few rows each, where the network takes several at once: NNCF spends as much on a request as on a row."""
        at_once = sensible_batch(self.rows.x.shape[1:], CALIBRATED if self.version.signature.batched else 1)
        return Requests(self.rows, self.version.signature.inputs[0].name, at_once)

    def quantize(self, recipe: Recipe, leave: Sequence[str] = ()) -> Any:
        """Raises Unprocessable."""
        return ptq.quantize(self.plain, self.requests(), self.spec.target, recipe, self.ctx.threads, leave)

    def error(self, model: Any) -> float:
        """‖outputs - float outputs‖ ÷ ‖float outputs‖ over up to 64 of the calibration rows."""
        if self.reference is None:
            self.reference = self._outputs(self.plain)
        apart = float(np.linalg.norm(self._outputs(model) - self.reference))
        whole = float(np.linalg.norm(self.reference))
        return apart / whole if whole else float(apart > 0)

    def judged(self, model: Any, data: Data, split: Literal["val", "test"]) -> Answers:
        """Its answers to every row of a split, as ONNX Runtime gives them."""
        rows = data.split(split)
        with asked(model, self.version, self.ctx) as predict:
            return answers(predict, rows, sensible_batch(rows.x.shape[1:]))

    def ranked(self, model: Any, progress: Callable[[int, int], None]) -> dict[str, float]:
        """Node name of every int8 layer → the error that its quantization alone makes, the largest first."""
        layers = [name for name in self.labels if name in qdq.int8_layers(model)]
        found = {}
        for done, name in enumerate(layers):
            progress(done, len(layers))
            found[name] = self.error(qdq.alone(model, self.plain, name))
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def _outputs(self, model: Any) -> Array:
        some = self.rows.subset(torch.arange(min(RANKED_ROWS, len(self.rows))))
        with asked(model, self.version, self.ctx) as predict:
            parts = [predict(x) for x, _ in some.batches(sensible_batch(some.x.shape[1:], BATCH))]
        return np.concatenate([np.asarray(p, np.float64).reshape(len(p), -1) for p in parts])


@contextmanager
def asked(model: Any, version: Version, ctx: Context) -> Iterator[Predict]:
    """An ONNX graph in ONNX Runtime."""
    folder = ctx.folder("asked")
    onnx.save(model, str(folder / "model.onnx"))
    options = LoadOptions(threads=ctx.threads, max_batch=BATCH)
    try:
        loaded = runtimes.get("onnxruntime").load(folder, version.signature, options)
        try:
            yield engine(loaded, version.signature, BATCH)
        finally:
            loaded.close()
    finally:
        for file in folder.iterdir():
            file.unlink()


def calibration(data: Data, samples: int, seed: int) -> Rows:
    """Seeded rows of the training split. Raises Unprocessable where they tell nothing: NaN, all zeros, all the same."""
    rows = data.train.sample(samples, seed)
    if not len(rows):
        raise _bad("the training split has no rows")
    low, high, broken = np.inf, -np.inf, 0
    first, differ = None, False
    for x, _ in rows.batches(sensible_batch(rows.x.shape[1:])):
        array = np.asarray(x.numpy(), np.float64)
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        broken += int((~finite).sum())
        if finite.any():
            low, high = min(low, array[finite].min()), max(high, array[finite].max())
        first = array[0] if first is None else first
        differ = differ or bool((array != first).any())
    about = f"of the {len(rows)} rows drawn from the training split of {data.ref}"
    if broken:
        raise _bad(f"{broken} {about} have NaN or infinity in them")
    if low == high:
        what = "zero" if low == 0 else f"{low:g}"
        raise _bad(f"every number {about} is {what}")
    if len(rows) > 1 and not differ:
        raise _bad(f"all {about} are the same row")
    return rows


def _bad(detail: str) -> Unprocessable:
    return Unprocessable(
        f"nothing can be calibrated: {detail}",
        code="bad_calibration",
        hint="ranges of activations are taken from these rows: upload the data that the model was trained with",
    )
