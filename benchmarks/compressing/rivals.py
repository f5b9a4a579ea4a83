"""What else one could do with the same data and budget of epochs; each ends as an engine of the same runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from enginesmith import ApiError, Client, EnginesmithError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from benchmarks.compressing.tasks import Arrays, Task

AMOUNT = 0.5


def rivals(task: Task, arrays: Arrays, client: Client, model: str, seed: int) -> tuple[dict[str, str], dict[str, str]]:
    """Name → ref of its engine, and name → why there is none. model: the original; its data set has its name."""
    name = task.name
    training = {**task.asked["finetune"], "seed": seed}

    def made(kind: str, of: str, **fields: Any) -> str:
        done = client.jobs.submit(kind, model=of, dataset=name, wait=True, **fields)
        assert done.result is not None
        return str(done.result["model"])

    def engine(of: str, precision: str = "fp32") -> str:
        return made("convert", of, target="openvino", precision=precision)

    def halved() -> str:
        return made("prune", model, method="channel", amount=AMOUNT, seed=seed, finetune={**training, "alpha": 0})

    def own_pruner() -> str:
        network = torch_pruning(task, arrays, client, model, training)
        client.push(network, f"{name}-tp", example=torch.zeros(1, *arrays["x"].shape[1:]))
        return engine(f"{name}-tp")

    ways: dict[str, Callable[[], str]] = {
        "plain fp32": lambda: engine(model),
        "plain int8": lambda: engine(made("quantize", model, target="openvino"), "int8"),
        "half of the channels, no teacher": lambda: engine(halved()),
        "that small network from scratch": lambda: engine(made("train", halved(), from_scratch=True, **training)),
        "torch-pruning's own pruner, half": own_pruner,
    }
    engines, failed = {}, {}
    for title, way in ways.items():
        try:
            engines[title] = way()
        except (ApiError, EnginesmithError, RuntimeError, LookupError) as error:
            failed[title] = str(error).splitlines()[0][:200]
    return engines, failed


def torch_pruning(task: Task, arrays: Arrays, client: Client, model: str, training: dict[str, Any]) -> nn.Module:
    """What a user of its high-level pruner gets: magnitude, half of the channels, then a plain loop of the same epochs,
    batches, learning rate and schedule, without augmentation. Raises RuntimeError or LookupError where it cannot prune
    the network, or what it leaves does not run."""
    import torch_pruning as tp

    torch.manual_seed(int(training["seed"]))
    network = task.network()
    with tempfile.TemporaryDirectory() as folder:
        network.load_state_dict(load_file(client.models.download(model, folder) / "model.safetensors"))
    example = torch.from_numpy(arrays["x"][:2])
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1:]
    tp.pruner.MagnitudePruner(
        network, example, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=AMOUNT, ignored_layers=last
    ).step()
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    optimizer = torch.optim.SGD(
        network.parameters(), training["lr"], momentum=0.9, weight_decay=training.get("weight_decay", 0.0)
    )
    steps = training["epochs"] * -(-len(x) // training["batch_size"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training["lr"], total_steps=steps)
    network.train()
    for _ in range(training["epochs"]):
        for rows in torch.randperm(len(x)).split(training["batch_size"]):
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network.eval()
