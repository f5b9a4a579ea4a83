"""A bench for passes: real stores, a real context, a job's spec in and its version out."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

from app.domain import specs
from app.domain.records import Dataset, Job, Made, Signature, Split, Tensor, Version, now
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.registry import publish_dataset, publish_version, put_files
from workers.context import Context
from workers.net import Net, save
from workers.passes import Outcome, apply
from workers.report import Report


class Bench:
    def __init__(self, settings: Settings, artifacts: Artifacts, catalog: Catalog, folder: Path) -> None:
        self.settings, self.artifacts, self.catalog, self.folder = settings, artifacts, catalog, folder
        self._ids = map(str, itertools.count(1))
        torch.set_num_threads(1)

    def model(self, name: str, module: nn.Module, row: tuple[int, ...], dtype: str = "float32", **more: Any) -> Version:
        """Publishes a network whose rows have that shape."""
        traced = module if isinstance(module, fx.GraphModule) else fx.symbolic_trace(module.eval())
        inputs = (Tensor(name="x", dtype=dtype, shape=(-1, *row)),)
        net = Net(traced.eval(), {}, Signature(inputs=inputs))
        with torch.no_grad():
            out = traced(*net.example())
        net.signature = Signature(inputs=inputs, outputs=(Tensor(name="logits", shape=(-1, *out.shape[1:])),))
        folder = self.folder / f"model-{next(self._ids)}"
        save(net, folder)
        return self.publish(name, "torch", folder, net.signature, trainable=True, **more)

    def file(self, name: str, format: str, path: Path, signature: Signature, **more: Any) -> Version:
        """Publishes one file: model.onnx or model.pt."""
        folder = self.folder / f"model-{next(self._ids)}"
        folder.mkdir()
        shutil.copyfile(path, folder / ("model.onnx" if format == "onnx" else "model.pt"))
        return self.publish(name, format, folder, signature, **more)

    def publish(self, name: str, format: str, folder: Path, signature: Signature, **more: Any) -> Version:
        job = f"made{next(self._ids)}"
        prefix = f"models/{name}/files/{job}-1"
        files, size = put_files(self.artifacts, folder, prefix)
        draft = {
            "name": name, "version": 1, "format": format, "folder": prefix, "files": files, "bytes": size,
            "signature": signature, "made_by": Made(job=job, spec={}), "created_at": now(),
        }  # fmt: skip
        return publish_version(self.artifacts, self.catalog, Version.model_validate(draft | more))

    def dataset(self, name: str, **splits: tuple[np.ndarray, np.ndarray]) -> Dataset:
        """Publishes arrays: train, val and test as (x, y)."""
        folder = self.folder / f"data-{name}"
        folder.mkdir()
        records = {}
        for split, (x, y) in splits.items():
            np.save(folder / f"x_{split}.npy", x)
            np.save(folder / f"y_{split}.npy", y)
            records[split] = Split(rows=len(x), x=f"x_{split}.npy", y=f"y_{split}.npy")
        x, y = splits["train"]
        prefix = f"datasets/{name}/files/1"
        files, size = put_files(self.artifacts, folder, prefix)
        draft = Dataset(
            name=name, version=1, kind="arrays", folder=prefix, files=files, bytes=size, x_shape=x.shape[1:],
            x_dtype=x.dtype.name, y_dtype=y.dtype.name, y_shape=y.shape[1:], splits=records, split_note="given",
            classes=int(y.max()) + 1 if y.dtype == np.int64 else None, created_at=now(),
        )  # fmt: skip
        return publish_dataset(self.artifacts, self.catalog, draft)

    def context(
        self, spec: dict[str, Any], id: str | None = None, attempt: int = 1, parent: str | None = None
    ) -> Context:
        id = id or f"job{next(self._ids)}"
        job = Job(
            id=id, kind=spec["kind"], spec=spec, model=spec.get("model"), dataset=spec.get("dataset"), created_at=now(),
            status="running", attempt=attempt, parent=parent,
        )  # fmt: skip
        self.catalog.redis.delete(f"es:job:{id}")  # of an earlier attempt
        self.catalog.add(job)
        scratch = self.folder / f"scratch-{id}-{attempt}"
        scratch.mkdir()
        report = Report(self.catalog, id, attempt)
        return Context(job, self.settings, self.artifacts, self.catalog, report, scratch, threads=1)

    def apply(self, **spec: Any) -> Outcome:
        """Runs a pass; nothing is published."""
        ctx = self.context(spec)
        try:
            return apply(specs.parse(spec), ctx)
        finally:
            ctx.report.close()

    def run(self, **spec: Any) -> tuple[Version, dict[str, Any]]:
        """Runs a pass and publishes what it made, as a job does."""
        outcome = self.apply(**spec)
        assert outcome.folder is not None
        made = dict(outcome.draft)
        signature, format = made.pop("signature"), made.pop("format")
        name = spec["model"].partition("@")[0]
        return self.publish(name, format, outcome.folder, signature, parent=spec["model"], **made), outcome.report


@pytest.fixture
def bench(settings: Settings, artifacts: Artifacts, catalog: Catalog, tmp_path: Path) -> Bench:
    return Bench(settings, artifacts, catalog, tmp_path)


@pytest.fixture
def stripes() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Three splits of 1×28×28 pictures with a bright band in one of ten places, under noise."""
    rng = np.random.default_rng(0)

    def some(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(0, 10, n)
        x = rng.standard_normal((n, 1, 28, 28)).astype(np.float32)
        for row, place in zip(x, y, strict=True):
            row[0, 2 * place + 4 : 2 * place + 7] += 1.5
        return x, y.astype(np.int64)

    return {"train": some(512), "val": some(128), "test": some(200)}
