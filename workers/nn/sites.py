"""Sites: the layers of a graph that others can take the place of, and the exchange itself."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

import torch
from enginesmith import graph as form
from torch import fx, nn
from torch.nn.modules import conv
from torch.nn.modules.batchnorm import _BatchNorm

from app.errors import Unprocessable
from workers.net import Net, prunable
from workers.nn import following
from workers.nn.graph import shapes


@dataclass(frozen=True)
class Site:
    """A layer with weights that the graph calls, and nothing else uses. taken, made: shapes of one row, without it."""

    name: str
    layer: nn.Module
    taken: tuple[int, ...]
    made: tuple[int, ...]
    calls: int
    norm: str | None  # the batch norm that alone takes what it gives

    @property
    def positions(self) -> tuple[int, int]:
        """How many places it is applied to: (of what goes in, of what comes out)."""
        if isinstance(self.layer, nn.Linear):
            return prod(self.taken[:-1]), prod(self.made[:-1])
        return prod(self.taken[1:]), prod(self.made[1:])

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one call for one row."""
        return weight_of(self.layer).numel() * self.positions[0 if is_transposed(self.layer) else 1]


def graph_of(net: Net) -> fx.GraphModule:
    """The network as a graph that can be rewritten and stored. Raises Unprocessable (`not_a_graph`)."""
    if isinstance(net.module, fx.GraphModule):
        return net.module
    try:
        found = following.graph_of(net.module, net.example())
        form.describe(found)
    except Exception as error:  # torch.fx raises whatever a network's own forward raises when it is traced
        raise Unprocessable(
            f"layers can only be exchanged in a network that is a graph; this one cannot be followed: {line(error)}",
            code="not_a_graph",
            hint="method `cluster` works on any network; or upload it as a graph, with enginesmith.export",
        ) from error
    return found


def sites(graph: fx.GraphModule, example: tuple[torch.Tensor, ...]) -> tuple[dict[str, Site], dict[str, str]]:
    """Every convolution and linear layer by name: those that can be exchanged, and why the others cannot."""
    values = shapes(graph, example)
    calls: dict[str, list[fx.Node]] = {}
    owners: dict[str, str] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
            owners[str(node.target)] = type(graph.get_submodule(str(node.target))).__name__
    read = {str(n.target).rpartition(".")[0] for n in graph.graph.nodes if n.op == "get_attr"}
    seen: dict[int, int] = {}
    for module in graph.modules():
        for parameter in module.parameters(recurse=False):
            seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    found: dict[str, Site] = {}
    reasons: dict[str, str] = {}
    for name, layer in prunable(graph).items():
        nodes = calls.get(name, [])
        block = next((kind for path, kind in owners.items() if name.startswith(f"{path}.")), None)
        if block:
            reasons[name] = f"{block} uses it as one block"
        elif name in read or not nodes:
            reasons[name] = "the graph uses its weights directly, or not at all"
        elif any(seen[id(p)] > 1 for p in layer.parameters(recurse=False)):
            reasons[name] = "it shares its weights with another layer"
        elif any(len(n.all_input_nodes) != 1 or len(n.args) != 1 or n.kwargs for n in nodes):
            reasons[name] = "the graph calls it with more than its input"
        else:
            taken, made = values[nodes[0].all_input_nodes[0]], values[nodes[0]]
            if isinstance(layer, conv._ConvNd) and taken.dim() != len(layer.kernel_size) + 2:
                reasons[name] = "it works on a single row"
            else:
                users = [user for node in nodes for user in node.users]
                sole = len(users) == 1 and len(calls.get(str(users[0].target), [])) == 1
                norm = str(users[0].target) if sole and _is_batch_norm(graph, users[0]) else None
                found[name] = Site(name, layer, tuple(taken.shape[1:]), tuple(made.shape[1:]), len(nodes), norm)
    return found, reasons


def _is_batch_norm(graph: fx.GraphModule, node: fx.Node) -> bool:
    layer = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    return isinstance(layer, _BatchNorm) and layer.track_running_stats


def exchange(graph: fx.GraphModule, name: str, parts: dict[str, nn.Module]) -> None:
    """Puts several layers, one after the other, in the place of the one of that name: `name.part` each."""
    holder = nn.Module()
    for part, layer in parts.items():
        holder.add_module(part, layer)
    above, _, last = name.rpartition(".")
    setattr(graph.get_submodule(above), last, holder)
    for node in [n for n in graph.graph.nodes if n.op == "call_module" and n.target == name]:
        value = node.args[0]
        with graph.graph.inserting_before(node):
            for part in parts:
                value = graph.graph.call_module(f"{name}.{part}", (value,))
        node.replace_all_uses_with(value)
        graph.graph.erase_node(node)


def must_know(names: Collection[str] | None, known: Collection[str], what: str) -> None:
    """Raises Unprocessable (`unknown_layer`) where layers are named that are not among those known."""
    missing = [name for name in names or () if name not in known]
    if missing:
        listed = list(known)
        some = ", ".join(listed[:12]) + (f" and {len(listed) - 12} more" if len(listed) > 12 else "")
        raise Unprocessable(
            f"the model has no {what} {', '.join(map(repr, missing[:5]))}; it has {some or 'none at all'}",
            code="unknown_layer",
            hint="name layers as they are in the architecture",
        )


def weight_of(layer: nn.Module) -> torch.Tensor:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def is_transposed(layer: nn.Module) -> bool:
    return bool(getattr(layer, "transposed", False))


def line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
