"""Jobs of every kind for the drills, each new each time, and what must be true of them afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from enginesmith import Client
from networks import SimpleCNN
from running import Service, files_in, until

_FINE = {"epochs": 2, "batch_size": 64}
_numbers = itertools.count(1)


def prepare(client: Client, digits: dict[str, np.ndarray]) -> None:
    """A data set and a network that every kind of job can do something with."""
    torch.manual_seed(0)
    client.datasets.push("digits", {name: array[:900] for name, array in digits.items()})
    client.push(SimpleCNN(), "net", example=torch.zeros(1, 1, 28, 28), wait=True)


def _import(client: Client) -> str:
    return str(client.push(SimpleCNN(), f"new{next(_numbers)}", example=torch.zeros(1, 1, 28, 28), wait=False).id)


def _job(kind: str, **spec: Any) -> Callable[[Client], str]:
    """A seed, or what else may differ, makes it a job of its own: nothing is taken from what another has made."""

    def submit(client: Client) -> str:
        number = next(_numbers)
        fresh: dict[str, Any] = {"seed": number}
        if kind in ("convert", "evaluate"):
            fresh = {"max_batch": 16 + number} if kind == "convert" else {"samples": 100 + number}
        if kind == "search":  # whose trials are remembered by what they did
            fresh["space"] = {"train.lr": [0.01 + number / 10_000, 0.02 + number / 10_000]}
        return str(client.jobs.submit(kind, model="net@1", dataset="digits", **(spec | fresh)).id)

    return submit


KINDS: dict[str, Callable[[Client], str]] = {
    "import": _import,
    "train": _job("train", epochs=4, batch_size=64),
    "prune": _job("prune", method="channel", amount=0.5, finetune=_FINE),
    "share": _job("share", method="grouped_conv", groups=2, finetune=_FINE),
    "quantize": _job("quantize", target="onnxruntime"),
    "convert": _job("convert", target="onnxruntime"),
    "evaluate": _job("evaluate"),
    "search": _job(
        "search", chain=[{"kind": "train", "epochs": 1, "batch_size": 64}], sampler="grid", parallel=2,
    ),
}  # fmt: skip
SILENT = ("evaluate",)  # makes no version


def made_by(client: Client, id: str) -> list[str]:
    """The versions that a job has published, or trials of it."""
    found = []
    for model in client.models.list(limit=None):
        for version in client.models.get(model["name"])["versions"]:
            if version["made_by"]["job"].startswith(id):
                found.append(version["ref"])
    return found


def settled(client: Client, service: Service, id: str, kind: str) -> None:
    """It ended as if nothing had been: one version, that can be fetched whole, and nothing left behind in the store."""
    until(lambda: client.jobs.get(id).status in ("succeeded", "failed", "cancelled"))
    job = client.jobs.get(id)
    assert job.status == "succeeded", (kind, job.error)
    refs = made_by(client, id)
    if kind not in SILENT:
        assert len(refs) == 1, (kind, refs)
        assert job.result.model == refs[0]
        files = client.models.version(refs[0])["files"]
        assert files
    until(lambda: files_in(service.data / "store" / "checkpoints" / id) == [])


def tidied(service: Service) -> None:
    """What killed attempts left on the disk is gone, too; it takes two minutes."""
    until(lambda: not list((service.data / "scratch" / "jobs").glob("*")))
