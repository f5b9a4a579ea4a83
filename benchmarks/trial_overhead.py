"""What a trial that trains costs beyond its epochs: a search over a learning rate, by one worker, over HTTP.

    python benchmarks/trial_overhead.py [--trials 6] [--epochs 8]

Once with a process that goes on with the next trial, as it is by default, and once with a process for each. The time of
the whole search, with its first step, the judging of the winner and its version, less all epochs, by the trials.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from enginesmith import Client

from demo.data import digits
from demo.net import SimpleCNN
from demo.service import service

KINDS = {"one process goes on": {}, "a process for each": {"ENGINESMITH_REUSE_S": "0"}}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args()
    print("seconds a trial         whole   epochs   beyond them")
    for name, settings in KINDS.items():
        with service(settings=settings) as (url, _):
            whole, epochs = seconds(Client(url), given.trials, given.epochs)
        beyond = (whole - epochs) / given.trials
        print(f"{name:22}{whole / given.trials:7.2f}  {epochs / given.trials:7.2f}  {beyond:12.2f}", flush=True)
    return 0


def seconds(client: Client, trials: int, epochs: int) -> tuple[float, float]:
    """Of the whole search, and of all epochs of all its trials."""
    client.push(SimpleCNN(), "digits", example=torch.zeros(1, 1, 28, 28))
    client.datasets.push("digits", **digits())
    search = client.jobs.submit(
        "search", model="digits", dataset="digits", chain=[{"kind": "train", "epochs": epochs, "batch_size": 32}],
        space={"train.lr": [0.01 * (n + 1) for n in range(trials)]}, sampler="grid", parallel=1, wait=True,
    )  # fmt: skip
    began, ended = (datetime.fromisoformat(str(search[at])) for at in ("started_at", "finished_at"))
    rows = [row for trial in client.jobs.list(parent=search.id) for row in client.jobs.get(trial.id)["history"]]
    return (ended - began).total_seconds(), sum(float(row["seconds"]) for row in rows if "epoch" in row)


if __name__ == "__main__":
    sys.exit(main())
