"""A search whose steps are real and whose trials are a formula: what is tried and what is made of it, no training."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rq

from app.domain.records import Dataset, Job, Made, Signature, Split, Tensor, Version, now
from app.domain.specs import Spec, TrialSpec
from app.queue import Queue
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.registry import publish_dataset, publish_version, put_files
from workers.context import Context
from workers.lease import Ending
from workers.passes import Outcome, Waits, apply
from workers.run import Parts, take_turn
from workers.trials import kept

CHAIN = [{"kind": "train", "epochs": 4}, {"kind": "prune", "method": "channel"}]
Values = dict[str, Any]


def formula(chain: list[dict[str, Any]]) -> Values:
    """Best at lr 0.01 and amount 0.3; more amount makes it smaller."""
    lr, amount = float(chain[0].get("lr", 0.05)), float(chain[1].get("amount", 0.5))
    quality = 1 - 0.1 * (math.log10(lr) + 2) ** 2 - (amount - 0.3) ** 2
    return {"quality": quality, "accuracy": quality, "parameters": 1000 * (1 - amount), "loss": 1 - quality}


class Field:
    """One worker that does what lies on the queue, and what it has tried."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.tried: list[Values] = []
        self.open: list[int] = []
        self.values: Callable[[list[dict[str, Any]]], Values] = formula
        self.epochs: Callable[[list[dict[str, Any]]], list[float]] = lambda chain: []
        self.more: Values = {}  # of a trial's report
        self.begun: Callable[[TrialSpec], int] = lambda spec: 0  # epochs that an attempt before has done
        self.before: Callable[[TrialSpec], None] = lambda spec: None

    def apply(self, spec: Spec, ctx: Context) -> Outcome | Waits:
        if not isinstance(spec, TrialSpec):
            return apply(spec, ctx)
        asked = spec.model_dump()
        if spec.role == "judge":
            quality = {"name": "accuracy", "value": 0.8, "low": 0.7, "high": 0.9, "n": 100, "split": "test"}
            return Outcome(None, {}, {"candidates": {"winner": {"quality": quality}}})
        self.open.append(len(ctx.catalog.trials.open(str(ctx.job.parent))))
        self.before(spec)
        for epoch, value in list(enumerate(self.epochs(asked["chain"]), 1))[self.begun(spec) :]:
            ctx.metrics({"epoch": epoch, "val_accuracy": value})
        self.tried.append({"lr": asked["chain"][0].get("lr"), "amount": asked["chain"][1].get("amount")})
        key = kept.key_of(chain=asked["chain"])
        folder = ctx.folder("made")
        (folder / "weights").write_bytes(b"w")
        kept.keep(ctx.artifacts, key, ctx.job.id, folder, ctx.catalog.version("net", 1).model_dump(), {})
        report = {"kept": key, "values": self.values(asked["chain"]), "cache_hit": False} | self.more
        return Outcome(None, {}, report)

    def submit(self, id: str = "s1", **asked: Any) -> str:
        spec: dict[str, Any] = {"kind": "search", "model": "net@1", "dataset": "data@1", "chain": CHAIN} | asked
        job = Job(id=id, kind="search", spec=spec, model="net@1", dataset="data@1", created_at=now())
        self.parts.queue.enqueue(self.parts.catalog.add(job))
        return id

    def deliver(self) -> bool:
        queue = rq.Queue("cpu", connection=self.parts.queue.redis)
        raw = self.parts.queue.redis.lpop(queue.key)
        if raw is None:
            return False
        delivery = rq.job.Job.fetch(raw.decode(), connection=self.parts.queue.redis)
        take_turn(self.parts, *delivery.args, delivered=delivery.id)
        return True

    def run(self, id: str = "s1", **asked: Any) -> Job:
        """Submits a search and works until nothing is left."""
        self.submit(id, **asked)
        return self.finish(id)

    def finish(self, id: str = "s1") -> Job:
        while self.deliver():
            pass
        return self.parts.catalog.job(id)


@pytest.fixture
def field(settings: Settings, catalog: Catalog, artifacts: Artifacts, redis_url: str, tmp_path: Path) -> Field:
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "weights").write_bytes(b"w")
    files, size = put_files(artifacts, folder, "models/net/files/made-1")
    signature = Signature(inputs=(Tensor(name="x", shape=(-1, 4)),), outputs=(Tensor(name="logits", shape=(-1, 2)),))
    version = Version(
        name="net", version=1, format="torch", folder="models/net/files/made-1", files=files, bytes=size,
        signature=signature, made_by=Made(job="made", spec={}), trainable=True, created_at=now(),
    )  # fmt: skip
    publish_version(artifacts, catalog, version)
    rows = tmp_path / "rows"
    rows.mkdir()
    for name in ("train", "val", "test"):
        np.save(rows / f"x_{name}.npy", np.zeros((20, 4), np.float32))
        np.save(rows / f"y_{name}.npy", np.arange(20) % 2)
    files, size = put_files(artifacts, rows, "datasets/data/files/1")
    publish_dataset(
        artifacts, catalog,
        Dataset(
            name="data", version=1, kind="arrays", folder="datasets/data/files/1", files=files, bytes=size,
            x_shape=(4,), x_dtype="float32", y_dtype="int64", classes=2, split_note="given", created_at=now(),
            splits={n: Split(rows=20, x=f"x_{n}.npy", y=f"y_{n}.npy") for n in ("train", "val", "test")},
        ),
    )  # fmt: skip
    made = Field(Parts(settings, catalog, Queue(redis_url), artifacts, Ending()))
    made.parts = Parts(settings, catalog, made.parts.queue, artifacts, made.parts.process, made.apply)
    return made
