"""Channel groups: sends labels through a network's graph to find which channels of which layers can only go together.

The dependency groups of DepGraph (Fang et al. 2023, the method of torch-pruning), but found channel by channel on the
torch.fx graph instead of layer by layer on the autograd graph: labels survive slices, pads, concatenations and views
exactly, and the graph is ours to rewrite. An operation that is not known here fixes the channels that reach it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules import batchnorm, conv, instancenorm

from workers.nn import moves, rules
from workers.nn.labels import FIXED, Ids, Labels, Ties, tensors_in

Side = Literal["in", "out", "norm"]
Member = tuple[str, Side]
NORMS = (batchnorm._BatchNorm, instancenorm._InstanceNorm, nn.PReLU)
# Removing a channel changes their statistics: the rest is not what it would be with the channel at zero.
OVER_CHANNELS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
LAYERS = (conv._ConvNd, nn.Linear)
OUTPUTS = "they are the network's outputs"


@dataclass
class Channel:
    """What goes together: for every layer and side, the positions. Removable where `kept_by` is None."""

    members: dict[Member, list[int]] = field(default_factory=dict)
    kept_by: str | None = None

    @property
    def makers(self) -> frozenset[str]:
        """The layers that produce it."""
        return frozenset(layer for layer, side in self.members if side == "out")


@dataclass
class Traced:
    """A graph with the labels of all its activations."""

    module: fx.GraphModule
    ties: Ties
    labels: dict[fx.Node, Any]
    uses: dict[Member, Ids]
    heads: dict[fx.Node, Labels] = field(default_factory=dict)  # what products of whole heads give: attention

    def channels(self) -> dict[int, Channel]:
        """root label → its channel, for every channel that some layer produces."""
        found: dict[int, Channel] = {}
        for member, ids in self.uses.items():
            for position, label in enumerate(ids.tolist()):
                if label != FIXED:
                    found.setdefault(self.ties.root(label), Channel()).members.setdefault(member, []).append(position)
        reasons = self.ties.reasons()
        for root, channel in found.items():
            channel.kept_by = reasons.get(root)
        return {root: channel for root, channel in found.items() if channel.makers}

    def head_roots(self) -> frozenset[int]:
        """The root labels that are heads."""
        return frozenset(self.ties.root(i) for labels in self.heads.values() for i in labels.ids.tolist())

    def blocks(self) -> dict[str, Ids]:
        """The heads of every attention block, named after what its queries, keys and values have in common."""
        makers: dict[int, set[str]] = {}
        for (name, side), ids in self.uses.items():
            if side == "out":
                for root in set(self.ties.roots(ids).tolist()):
                    makers.setdefault(root, set()).add(name)
        found: dict[frozenset[str], Ids] = {}
        for labels in self.heads.values():
            roots = self.ties.roots(labels.ids).tolist()
            found[frozenset(m for r in roots for m in makers.get(r, ()))] = np.unique(labels.ids)
        return {_common(names): ids for names, ids in found.items()}


def _common(names: Collection[str]) -> str:
    """The path that these layers share, or where they share none, all of them."""
    paths = [name.split(".")[:-1] for name in sorted(names)]
    shared = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
    return ".".join(shared) or ", ".join(sorted(names))


def trace(module: fx.GraphModule, example: tuple[torch.Tensor, ...]) -> Traced:
    """Labels for every node. example: inputs of two rows or more. Raises whatever running the module raises."""
    return _Tracer(module, example).run()


class Shapes(fx.Interpreter):
    """Runs a graph and keeps what every node gave: tensors on the meta device, numbers as they are."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        self.values[n] = torch.utils._pytree.tree_map(_without_data, found)
        return found


def shapes(module: fx.GraphModule, example: tuple[torch.Tensor, ...]) -> dict[fx.Node, Any]:
    """What every node gives for these inputs, without the data."""
    run = Shapes(module)
    with torch.no_grad():
        run.run(*(t.clone() for t in example))
    return run.values


def _without_data(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, torch.Tensor) else value


class _Tracer:
    def __init__(self, module: fx.GraphModule, example: tuple[torch.Tensor, ...]) -> None:
        self.module, self.values = module, shapes(module, example)
        self.ties, self.labels, self.uses = Ties(), dict[fx.Node, Any](), dict[Member, Ids]()
        self.heads: dict[fx.Node, Labels] = {}
        owners = Counter(id(p) for m in module.modules() for p in m.parameters(recurse=False))
        self._shared = {i for i, n in owners.items() if n > 1}

    def run(self) -> Traced:
        for node in self.module.graph.nodes:
            self.labels[node] = self._node(node)
        if self.heads:
            self._keep_widths()
        for node, labels in self.labels.items():
            self.labels[node] = self._settled(labels, f"{moves.told(node)} ties them to other channels")
        heads = {node: self._settled(labels, "") for node, labels in self.heads.items()}
        return Traced(self.module, self.ties, self.labels, self.uses, heads)

    def _settled(self, labels: Any, why: str) -> Any:
        if isinstance(labels, Labels):
            return self.ties.settle(labels, why)
        return tuple(self._settled(inner, why) for inner in labels) if isinstance(labels, tuple) else labels

    def _keep_widths(self) -> None:
        """Beside attention, the width that blocks add to stays: nothing proves a normalisation over less of it."""
        for (name, side), ids in self.uses.items():
            if side == "norm" and isinstance(self.module.get_submodule(name), OVER_CHANNELS):
                self.ties.fix(ids, f"the normalisation {name} runs over them, and over fewer it gives other values")

    def _node(self, node: fx.Node) -> Any:
        if node.op in ("placeholder", "get_attr"):
            return self._unknown(node)
        if node.op == "output":
            self._fix_inputs(node, OUTPUTS)
            return None
        if node.op == "call_module":
            return self._module(node, str(node.target), self.module.get_submodule(str(node.target)))
        handler = rules.HANDLERS.get(moves.name_of(node))
        if handler is None or not any(True for _ in tensors_in(self._given(node))):
            return self._unknown(node)
        found = handler(moves.Call(node, self.values, self.labels, self.ties, None, self.heads))
        return self._unknown(node) if found is NotImplemented else found

    def _given(self, node: fx.Node) -> Any:
        return [self.labels.get(n) for n in node.all_input_nodes]

    def _unknown(self, node: fx.Node) -> Any:
        """Fixes all that goes in, and gives labels that are FIXED."""
        what = moves.name_of(node) if node.op != "call_module" else type(_layer(self.module, node)).__name__
        self._fix_inputs(node, f"`{what}` ({node.name}) uses them in a way that cannot be rewritten safely")
        return torch.utils._pytree.tree_map(_fixed, self.values[node])

    def _fix_inputs(self, node: fx.Node, why: str) -> None:
        for labels in tensors_in(self._given(node)):
            self.ties.fix(labels, why)

    def _module(self, node: fx.Node, name: str, layer: nn.Module) -> Any:
        x = self.labels.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        out = self.values[node]
        if not isinstance(x, Labels) or not isinstance(out, torch.Tensor) or len(node.all_input_nodes) != 1:
            return self._unknown(node)
        shape = tuple(out.shape)
        if isinstance(layer, conv._ConvNd):
            return self._conv(node, name, layer, x, shape)
        if isinstance(layer, nn.Linear):
            self._use(name, "in", self._along(x, len(x.shape) - 1, node))
            return Labels(shape, (len(shape) - 1,), self._make(name, layer, layer.out_features))
        if isinstance(layer, nn.Embedding):
            return Labels(shape, (len(shape) - 1,), self._make(name, layer, layer.embedding_dim))
        if isinstance(layer, NORMS + OVER_CHANNELS):
            return self._norm(node, name, layer, x, shape)
        handler = rules.MODULES.get(type(layer).__name__) or rules.FAMILIES.get(type(layer).__module__)
        if handler is None:
            return self._unknown(node)
        found = handler(moves.Call(node, self.values, self.labels, self.ties, layer, self.heads))
        return self._unknown(node) if found is NotImplemented else found

    def _conv(self, node: fx.Node, name: str, layer: conv._ConvNd, x: Labels, shape: tuple[int, ...]) -> Labels:
        if len(x.shape) != len(layer.kernel_size) + 2:
            return self._unknown(node)  # type: ignore[no-any-return]
        taken, made, groups = self._along(x, 1, node), self._make(name, layer, layer.out_channels), layer.groups
        self._use(name, "in", taken)
        why = f"the groups of {name}"
        if groups == layer.in_channels and groups > 1:  # depthwise: a group is a channel, and goes with it
            self.ties.tie(taken.repeat(layer.out_channels // groups), made, why)
        elif groups > 1:  # every group must keep the same positions
            for ids in (taken, made):
                self.ties.tie(ids.reshape(groups, -1), ids.reshape(groups, -1)[:1].repeat(groups, 0), why)
        return Labels(shape, (1,), made)

    def _norm(self, node: fx.Node, name: str, layer: nn.Module, x: Labels, shape: tuple[int, ...]) -> Any:
        if not x.axes:
            return Labels(shape)
        axis = 1
        if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
            axis = len(shape) - 1
            inside = [a for a in x.axes if a >= len(shape) - len(layer.normalized_shape)]
            if len(inside) < len(x.axes):  # of every head the same, say
                return self.ties.close(x, inside, f"{name} runs over them")
            if len(layer.normalized_shape) > 1:
                return self._unknown(node)
        if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
            return x
        ids = self._along(x, axis, node)
        if isinstance(layer, nn.GroupNorm) and 1 < layer.num_groups < layer.num_channels:
            rows = ids.reshape(layer.num_groups, -1)
            self.ties.tie(rows, rows[:1].repeat(layer.num_groups, 0), f"the groups of {name}")
        self._guard_shared(name, layer, ids)
        self._use(name, "norm", ids)
        return Labels(shape, (axis,), ids)

    def _along(self, x: Labels, axis: int, node: fx.Node) -> Ids:
        why = f"{node.target} ({node.name}) takes them as positions, not as channels"
        ids = self.ties.line(x, axis, why)
        if ids is not None:
            return ids
        self.ties.fix(x, why)
        return np.full(x.shape[axis], FIXED, np.int64)

    def _make(self, name: str, layer: nn.Module, n: int) -> Ids:
        """The labels that a layer produces; a layer that is called twice produces the same."""
        if (name, "out") not in self.uses:
            self.uses[name, "out"] = self.ties.fresh(n)
            self._guard_shared(name, layer, self.uses[name, "out"])
        return self.uses[name, "out"]

    def _use(self, name: str, side: Side, ids: Ids) -> None:
        before = self.uses.setdefault((name, side), ids)
        if before is not ids:
            self.ties.tie(before, ids, f"{name} is called more than once")
        if any(id(p) in self._shared for p in self.module.get_submodule(name).parameters(recurse=False)):
            self.ties.fix(ids, f"{name} shares its weights with another layer")

    def _guard_shared(self, name: str, layer: nn.Module, ids: Ids) -> None:
        if any(id(p) in self._shared for p in layer.parameters(recurse=False)):
            self.ties.fix(ids, f"{name} shares its weights with another layer")


def _layer(module: fx.GraphModule, node: fx.Node) -> nn.Module:
    return module.get_submodule(str(node.target))


def _fixed(value: Any) -> Any:
    return Labels(tuple(value.shape)) if isinstance(value, torch.Tensor) else None
