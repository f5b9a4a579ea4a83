"""What the training loop costs over a bare PyTorch loop on the same data: rounds A B A B in one process, medians.

    python benchmarks/train_overhead.py [--rounds 9] [--epochs 3] [--rows 3840] [--batch 64] [--fused]

Both train the same SimpleCNN from the same weights on the same batches, and look at the validation split once an epoch.
The bare loop is what one would type: no checkpoints, no progress, no history, no locks, no memory-mapped files.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.domain.records import Dataset, Split, now
from app.domain.specs import Training
from workers.nn.data import Data, open_dataset
from workers.nn.fit import fit


class SimpleCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
        self.fc1, self.fc2 = nn.Linear(320, 50), nn.Linear(50, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        out: torch.Tensor = self.fc2(F.relu(self.fc1(x.view(-1, 320))))
        return out


class Silence:
    """A job's context that hears everything and writes checkpoints to a folder."""

    device, threads, seed = "cpu", torch.get_num_threads(), 0

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.heard = scratch, 0

    def progress(self, *_: Any, **__: Any) -> None:
        self.heard += 1

    metrics = log = progress

    def checkpoint(self, state: Path, epoch: int) -> None:
        (self.scratch / str(epoch)).write_bytes(state.read_bytes())

    def last_checkpoint(self) -> None:
        return None


def bare(model: nn.Module, data: Data, plan: Training, fused: bool) -> None:
    x, y = data.train.take(torch.arange(len(data.train)))
    x_val, y_val = data.val.take(torch.arange(len(data.val)))
    steps = -(-len(x) // plan.batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=plan.lr, momentum=plan.momentum, fused=fused)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.lr, total_steps=plan.epochs * steps)
    for _ in range(plan.epochs):
        model.train()
        total = 0.0
        for rows in torch.randperm(len(x)).split(plan.batch_size):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        model.eval()
        with torch.no_grad():
            float((model(x_val).argmax(1) == y_val).float().mean())


def dataset(folder: Path, rows: int) -> Data:
    rng = np.random.default_rng(0)
    splits: dict[Any, Split] = {}
    for name, n in (("train", rows), ("val", rows // 4), ("test", 64)):
        np.save(folder / f"x_{name}.npy", rng.standard_normal((n, 1, 28, 28), dtype=np.float32))
        np.save(folder / f"y_{name}.npy", rng.integers(0, 10, n))
        splits[name] = Split(rows=n, x=f"x_{name}.npy", y=f"y_{name}.npy")
    record = Dataset(
        name="noise", version=1, kind="arrays", folder="", files={}, bytes=0, x_shape=(1, 28, 28), x_dtype="float32",
        y_dtype="int64", classes=10, splits=splits, split_note="", created_at=now(),
    )  # fmt: skip
    return open_dataset(record, folder)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rounds", 9), ("epochs", 3), ("rows", 3840), ("batch", 64), ("threads", 1)):
        asked.add_argument(f"--{name}", type=int, default=value)
    asked.add_argument("--fused", action="store_true", help="the bare loop too uses the fused optimizer, as fit does")
    given = asked.parse_args()
    torch.set_num_threads(given.threads)
    plan = Training(epochs=given.epochs, batch_size=given.batch, lr=0.01)
    taken: dict[str, list[float]] = {"bare": [], "fit": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = dataset(folder, given.rows)
        for turn in range(-1, given.rounds):  # the first round warms up
            for which in ("bare", "fit") if turn % 2 else ("fit", "bare"):
                torch.manual_seed(0)
                model = SimpleCNN()
                began = time.perf_counter()
                if which == "bare":
                    bare(model, data, plan, given.fused)
                else:
                    fit(model, data, plan, Silence(folder))  # type: ignore[arg-type]
                if turn >= 0:
                    taken[which].append(time.perf_counter() - began)
    ratios = [f / b for f, b in zip(taken["fit"], taken["bare"], strict=True)]
    print(f"{'loop':<6} {'median s':>9} {'fastest s':>10}")
    for which, seconds in taken.items():
        print(f"{which:<6} {statistics.median(seconds):>9.3f} {min(seconds):>10.3f}")
    print(
        f"fit ÷ bare: median of {given.rounds} rounds {statistics.median(ratios):.3f}, "
        f"of the fastest {min(taken['fit']) / min(taken['bare']):.3f}"
    )
    print(f"torch {torch.__version__}, {given.threads} thread(s), load {os.getloadavg()[0]:.2f}: {' '.join(sys.argv)}")


if __name__ == "__main__":
    main()
