"""Says what the GPU parts find on this machine and, where there is a GPU, runs them: trains and prunes on it."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOOD_ENOUGH = 0.95


def main() -> int:
    """0 when everything that this machine can do was done; 1 when something on the GPU failed."""
    import torch

    from app import runtimes

    found = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    say(f"torch {torch.__version__}: {found}")
    for name in runtimes.names():
        there = runtimes.get(name).available()
        facts = " · ".join(part for part in (there.version, there.device, ", ".join(there.precisions)) if part)
        say(f"{name}: {facts if there.ok else 'not here: ' + there.reason}")
    if not torch.cuda.is_available():
        say("nothing was run on a GPU")
        return 0
    return train_and_prune()


def train_and_prune() -> int:
    """The demo's network, through a real service whose worker takes the gpu queue: bf16 autocast, channels_last."""
    sys.path.insert(0, str(ROOT))
    import torch
    from enginesmith import Client

    from demo.data import digits
    from demo.net import SimpleCNN
    from demo.service import service

    with service() as (url, _), Client(url) as client:
        client.datasets.push("digits", **digits())
        client.push(SimpleCNN(), "digits", example=torch.zeros(2, 1, 28, 28))
        wanted = {"epochs": 30, "lr": 0.05, "batch_size": 32}
        trained = client.jobs.submit("train", model="digits@1", dataset="digits", wait=True, **wanted)
        pruned = client.jobs.submit(
            "prune", model=trained.result.model, dataset="digits", method="channel", finetune=wanted, wait=True
        )
        failed = 0
        for job in (trained, pruned):
            version = client.models.version(job.result.model)
            devices = {row.device for row in version.metrics.latency}
            accuracy = version.metrics.quality.value
            good = devices == {"cuda"} and accuracy >= GOOD_ENOUGH
            failed += not good
            p50 = ", ".join(f"batch {row.batch}: {row.p50_ms:.3f} ms" for row in version.metrics.latency)
            say(f"{'ok' if good else 'FAILED'}: {job.kind} on {devices}: {accuracy:.2%} on the test split; p50 {p50}")
    return 1 if failed else 0


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
