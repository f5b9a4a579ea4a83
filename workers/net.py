"""Net: a network in hand, with what is known about it; the way from a stored `torch` version to one, and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from enginesmith import graph as form
from enginesmith.shapes import flatten as flatten
from torch import fx, nn

from app.domain.records import Signature, Tensor, Version
from workers.load import graph, library, weights

ARCHITECTURE = "architecture.json"
WEIGHTS = "model.safetensors"
# What a dimension of any size, other than the batch, is taken as in an example.
_ANY_SIZE = {True: 32, False: 16}
PRUNABLE = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass
class Net:
    """module: on the CPU, in eval mode, when `load` gives it. architecture: data. preprocess: of encoded images."""

    module: nn.Module
    architecture: dict[str, Any]
    signature: Signature
    task: str | None = None
    labels: tuple[str, ...] | None = None
    preprocess: dict[str, Any] | None = None

    def example(self, batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """One random tensor per input of the signature, in order, on the CPU."""
        return example(self.signature, self.module, batch, seed)


def load(folder: Path, version: Version) -> Net:
    """The network of a `torch` version whose files lie in `folder`. Raises BadArchitecture."""
    architecture = json.loads((folder / ARCHITECTURE).read_text())
    module = rebuild(architecture, read_weights(folder / WEIGHTS))
    return Net(module, architecture, version.signature, version.task, version.labels, version.preprocess)


def rebuild(architecture: dict[str, Any], state: dict[str, torch.Tensor]) -> nn.Module:
    """The network that checked data describes, with its weights, in eval mode. Raises BadArchitecture."""
    if "graph" in architecture:
        module: nn.Module = graph.build(architecture["graph"])
    else:
        module = library.build(architecture, sum(t.numel() for t in state.values()))
    weights.fit(module, state)
    return module.eval()


def save(net: Net, folder: Path) -> None:
    """Writes architecture.json and model.safetensors: the network as it is now, channels gone and all."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(net.module, fx.GraphModule):
        net.architecture = form.describe(net.module)
        state = form.weights(net.module, net.architecture)
    else:
        state = net.module.state_dict()
    weights.save(state, folder / WEIGHTS)
    (folder / ARCHITECTURE).write_text(json.dumps(net.architecture, allow_nan=False))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file."""
    from safetensors.torch import load_file

    return load_file(path)


def example(
    signature: Signature, module: nn.Module | None = None, batch: int = 2, seed: int = 0, *, wider: bool = False
) -> tuple[torch.Tensor, ...]:
    """Random inputs: floats from N(0, 1), integers that every embedding of `module` knows, masks of ones.

    A dynamic axis 0 becomes `batch`; other dynamic axes 32 (floats) or 16, and half as much again if `wider`.
    """
    generator = torch.Generator().manual_seed(seed)
    known = [m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding)] if module is not None else []
    return tuple(_random(t, batch, generator, min(known, default=2), wider) for t in signature.inputs)


def _random(tensor: Tensor, batch: int, generator: torch.Generator, known: int, wider: bool) -> torch.Tensor:
    dtype = getattr(torch, tensor.dtype)
    other = _ANY_SIZE[dtype.is_floating_point] * (3 if wider else 2) // 2
    sizes = [
        size if size >= 0 else batch if axis == tensor.batch_axis else other for axis, size in enumerate(tensor.shape)
    ]
    if dtype.is_floating_point:
        return torch.randn(sizes, generator=generator).to(dtype)
    if "mask" in tensor.name.lower() or dtype == torch.bool:
        return torch.ones(sizes, dtype=dtype)
    return torch.randint(0, max(1, known), sizes, generator=generator).to(dtype)


def prunable(module: nn.Module) -> dict[str, nn.Module]:
    """The layers whose weights can be pruned, by path: convolutions and linear layers, each once."""
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, PRUNABLE)}


def layer_sparsity(module: nn.Module) -> dict[str, float]:
    """The share of weights that are exactly zero, for every prunable layer."""
    return {path: _zeros(layer) / max(1, _count(layer)) for path, layer in prunable(module).items()}


def sparsity(module: nn.Module) -> float:
    """The same over the weights of all prunable layers together; 0 where there are none."""
    layers = list(prunable(module).values())
    return sum(map(_zeros, layers)) / max(1, sum(map(_count, layers)))


def parameters(module: nn.Module) -> int:
    """How many trainable numbers it has; one that is used twice counts once."""
    return sum(p.numel() for p in module.parameters())


def _zeros(layer: nn.Module) -> int:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return int((weight == 0).sum())


def _count(layer: nn.Module) -> int:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight.numel()
