"""What else one could do with the same data and budget of epochs; each ends as an engine of the same runtime."""

from __future__ import annotations

from typing import Any

import torch
from enginesmith import Client
from torch import nn
from torch.nn import functional as F

from benchmarks.compressing.tasks import Arrays, Task

AMOUNT = 0.5


def rivals(task: Task, arrays: Arrays, client: Client, model: str, dataset: str, seed: int) -> dict[str, str]:
    """Name → ref of its engine."""
    training = {**task.asked["finetune"], "seed": seed}
    engines = {"plain int8": _int8(client, model, dataset)}
    pruned = client.jobs.submit(
        "prune", model=model, dataset=dataset, method="channel", amount=AMOUNT, seed=seed,
        finetune={**training, "alpha": 0}, wait=True,
    ).result.model  # fmt: skip
    engines["50 % of channels, no distillation"] = _engine(client, pruned, dataset)
    scratch = client.jobs.submit(
        "train", model=pruned, dataset=dataset, from_scratch=True, **training, wait=True
    ).result.model
    engines["the same small network from scratch"] = _engine(client, scratch, dataset)
    client.push(
        torch_pruning(task, arrays, client, model, training), f"{model.partition('@')[0]}-tp",
        example=torch.zeros(1, *arrays["x"].shape[1:]),
    )  # fmt: skip
    engines["torch-pruning's own pruner"] = _engine(client, f"{model.partition('@')[0]}-tp", dataset)
    return engines


def torch_pruning(task: Task, arrays: Arrays, client: Client, model: str, training: dict[str, Any]) -> nn.Module:
    """What a user of its high-level pruner gets: magnitude, half of the channels, then a plain loop of the same epochs,
    batches, learning rate and schedule."""
    import torch_pruning as tp

    torch.manual_seed(int(training["seed"]))
    network = task.network()
    client.models.weights(model, into=network) if hasattr(client.models, "weights") else None
    example = torch.from_numpy(arrays["x"][:2])
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1:]
    pruner = tp.pruner.MagnitudePruner(
        network, example, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=AMOUNT, ignored_layers=last
    )
    pruner.step()
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    steps = -(-len(x) // training["batch_size"])
    optimizer = torch.optim.SGD(
        network.parameters(), training["lr"], momentum=0.9, weight_decay=training.get("weight_decay", 0.0)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training["lr"], total_steps=steps * training["epochs"]
    )
    network.train()
    for _ in range(training["epochs"]):
        for rows in torch.randperm(len(x)).split(training["batch_size"]):
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def _int8(client: Client, model: str, dataset: str) -> str:
    quantized = client.jobs.submit("quantize", model=model, dataset=dataset, target="openvino", wait=True).result.model
    return _engine(client, quantized, dataset, "int8")


def _engine(client: Client, model: str, dataset: str, precision: str = "fp32") -> str:
    made = client.jobs.submit(
        "convert", model=model, dataset=dataset, target="openvino", precision=precision, wait=True
    )
    return str(made.result.model)
