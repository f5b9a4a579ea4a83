"""Training and pruning where there is a GPU: the demo's network through the real service, in bf16 and channels_last."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from enginesmith import Client

from demo.data import digits
from demo.net import SimpleCNN
from demo.service import service

GOOD_ENOUGH = 0.95


def train_and_prune(device: str) -> Iterator[tuple[bool, str]]:
    """For each job whether it ran on the device and learned the digits, and a line that says it."""
    with service() as (url, _), Client(url) as client:
        client.datasets.push("digits", **digits())
        client.push(SimpleCNN(), "digits", example=torch.zeros(2, 1, 28, 28))
        wanted = {"epochs": 30, "lr": 0.05, "batch_size": 32}
        trained = client.jobs.submit("train", model="digits@1", dataset="digits", wait=True, **wanted)
        pruned = client.jobs.submit(
            "prune", model=trained.result.model, dataset="digits", method="channel", finetune=wanted, wait=True
        )
        for job in (trained, pruned):
            version = client.models.version(job.result.model)
            devices = {row.device for row in version.metrics.latency}
            accuracy = version.metrics.quality.value
            p50 = ", ".join(f"batch {row.batch}: {row.p50_ms:.3f} ms" for row in version.metrics.latency)
            good = devices == {device} and accuracy >= GOOD_ENOUGH
            yield good, f"{job.kind} on {', '.join(devices)}: {accuracy:.2%} on the test split; p50 {p50}"
