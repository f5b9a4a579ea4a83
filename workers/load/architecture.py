"""An architecture in any of its three forms and its weights → a network; in the graph form wherever it can be had."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from enginesmith import allowed
from enginesmith import graph as form
from enginesmith.export import export
from safetensors.torch import load as load_bytes
from torch import fx, nn

from app.domain.records import Signature
from app.errors import BadArchitecture
from workers.load import graph, library, sequential, signature, weights
from workers.load.state_dict import align
from workers.net import Net, example

FORMS = ("graph", "sequential", "library")
# What tracing says when the graph would lose something that the library's network does in training.
_LOSES = ("training mode",)


@dataclass(frozen=True)
class Built:
    """net: with its outputs observed. notes: what was put right on the way."""

    net: Net
    notes: tuple[str, ...]


def build(architecture: dict[str, Any], state: dict[str, torch.Tensor], said: Signature | None) -> Built:
    """The network that `architecture` describes, with the weights `state`. Raises BadArchitecture, Unprocessable."""
    kinds = [k for k in FORMS if k in architecture]
    if len(kinds) != 1:
        raise BadArchitecture(
            f"an architecture is one of {', '.join(FORMS)}; this has {', '.join(map(repr, architecture)) or 'nothing'}",
            hint='{"sequential": […]}, {"library": "timm", "name": "resnet18"}, or what enginesmith.export writes',
        )
    weights.check_numbers(state)
    notes: list[str] = []
    if kinds[0] == "library":
        return _from_library(architecture, state, said, notes)
    data = architecture["graph"] if kinds[0] == "graph" else sequential.expand(architecture["sequential"])
    module = graph.build(data)
    notes += weights.fit(module, align(state, set(module.state_dict()), notes))
    module.eval()
    said = said or _first_layer(module)
    if said is None:
        raise signature.missing("an architecture with weights")
    _check_inputs(module, said)
    observed = signature.observe(module, said)
    names = graph.outputs(form.describe(module)["graph"])
    if names and not said.outputs:
        observed = observed.but(outputs=[t.but(name=n) for t, n in zip(observed.outputs, names, strict=True)])
    return Built(Net(module, form.describe(module), observed), tuple(notes))


def _from_library(
    architecture: dict[str, Any], state: dict[str, torch.Tensor], said: Signature | None, notes: list[str]
) -> Built:
    module = library.build(architecture, sum(t.numel() for t in state.values()))
    notes += weights.fit(module, align(state, set(module.state_dict()), notes))
    module.eval()
    said = said or library.inputs(module)
    if said is None:
        raise signature.missing(f"{architecture['library']}'s {architecture['name']}")
    observed = signature.observe(module, said)
    net = Net(module, {k: architecture[k] for k in ("library", "name", "kwargs") if k in architecture}, observed)
    return Built(*_normalised(net, notes))


def _normalised(net: Net, notes: list[str]) -> tuple[Net, tuple[str, ...]]:
    """The same network in the graph form, if it can be followed and loses nothing."""
    inputs = example(net.signature, net.module, batch=2)
    names = [t.name for t in net.signature.inputs]
    dynamic = {
        n: [a for a, s in enumerate(t.shape) if s == -1] for n, t in zip(names, net.signature.inputs, strict=True)
    }
    positions = _parameters(net.module, len(names))
    try:
        found = export(
            net.module,
            inputs,
            names=names if all(allowed.IDENTIFIER.match(n) for n in names) else None,
            dynamic={p: dynamic[n] for p, n in zip(positions, names, strict=True)},
        )
        lost = next((n for n in found.notes if any(word in n for word in _LOSES)), None)
        if lost:
            raise form.NotExpressible(lost)
        module = graph.build(found.architecture["graph"])
        weights.fit(module, load_bytes(found.weights))
    except (form.NotExpressible, BadArchitecture) as error:
        # Where the library lies on this machine is its own business.
        said = re.sub(r"/\S*/site-packages/", "", str(error).splitlines()[0])
        return net, (*notes, f"kept as the library's network, since it cannot be written as a graph: {said}")
    notes = [*notes, "rewritten as a graph: its channels can be pruned"]
    return Net(module.eval(), found.architecture, net.signature), tuple(notes)


def _parameters(module: nn.Module, count: int) -> list[str]:
    import inspect

    found = list(inspect.signature(module.forward).parameters.values())
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in found):
        return [f"{found[0].name}_{n}" for n in range(count)]
    return [p.name for p in found[:count]]


def _check_inputs(module: fx.GraphModule, said: Signature) -> None:
    names = [str(n.target) for n in module.graph.nodes if n.op == "placeholder"]
    if len(names) != len(said.inputs):
        raise BadArchitecture(
            f"the network takes {len(names)} inputs ({', '.join(names)}), the signature names {len(said.inputs)} "
            f"({', '.join(t.name for t in said.inputs)})",
            hint="name every input of the network in the signature, in its order",
        )
    stated = [t.name for t in said.inputs]
    if set(stated) == set(names) and stated != names:
        raise BadArchitecture(
            f"the signature names the inputs in the order {', '.join(stated)}, the network takes {', '.join(names)}"
        )


def _first_layer(module: fx.GraphModule) -> Signature | None:
    """The signature of a network whose first layer alone says what it takes."""
    holders = [n for n in module.graph.nodes if n.op == "placeholder"]
    if len(holders) != 1 or len(holders[0].users) != 1:
        return None
    first = next(iter(holders[0].users))
    layer = module.get_submodule(str(first.target)) if first.op == "call_module" else None
    if not isinstance(layer, nn.Linear):
        return None
    return Signature.model_validate({"inputs": [{"name": holders[0].target, "shape": [-1, layer.in_features]}]})
