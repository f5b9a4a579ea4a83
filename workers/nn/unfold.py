"""torch's own attention blocks, written out: what they compute, as layers and operations that a graph can be cut along.

nn.MultiheadAttention must have as many heads as fill its width, so that it cannot itself lose one.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from workers.nn.graph import shapes
from workers.nn.proof import Broken, distance, longer


class _Closed(Exception):
    """A block that stays one: why."""


def unfold(
    module: fx.GraphModule, example: tuple[torch.Tensor, ...], layers: Collection[str] | None = None
) -> tuple[fx.GraphModule, dict[str, str]]:
    """A copy with its attention blocks written out, proved to be equal, and for every block that stays one, why.

    layers: only blocks that one of these layers is in. Gives `module` itself where there is nothing to write out.
    """
    blocks = [str(n.target) for n in module.graph.nodes if _is_block(module, n)]
    wanted = {b for b in blocks if layers is None or any(name.startswith(f"{b}.") for name in layers)}
    if not wanted:
        return module, {}
    found = _Unfolding(copy.deepcopy(module), example)
    found.run(wanted)
    try:
        worst = max(distance(found.module, module, inputs) for inputs in (example, longer(example)))
        if not worst < 1e-4:
            raise Broken(f"its outputs differ by {worst:.3g}")
    except Broken as error:
        return module, dict.fromkeys(wanted, f"written out layer by layer, {error}")
    return found.module, found.closed


class _Unfolding:
    def __init__(self, module: fx.GraphModule, example: tuple[torch.Tensor, ...]) -> None:
        self.module, self.graph = module, module.graph
        self.values: dict[fx.Node, Any] = shapes(module, example)
        self.closed: dict[str, str] = {}

    def run(self, wanted: set[str]) -> None:
        opened: dict[str, nn.Module] = {}
        for node in (open_ := [n for n in self.graph.nodes if _is_block(self.module, n) and n.target in wanted]):
            path = str(node.target)
            block = opened.get(path) or self.module.get_submodule(path)
            before = set(self.graph.nodes)
            try:
                with self.graph.inserting_before(node):
                    found = _FORMS[type(block)](self, block, node)
            except _Closed as why:
                self.closed[path] = str(why)
                for extra in reversed([n for n in self.graph.nodes if n not in before]):
                    self.graph.erase_node(extra)
                continue
            opened[path] = block
            self._replace(node, block, found)
            open_ += [n for n in self.graph.nodes if n not in before and _is_block(self.module, n)]
        # Only now: a block that is called twice is written out twice, of the same layers.
        for path, block in sorted(opened.items(), reverse=True):
            if not any(n.op == "call_module" and n.target == path for n in self.graph.nodes):
                self.module.set_submodule(path, _container(block))
        self.graph.lint()
        self.module.recompile()

    def _replace(self, node: fx.Node, block: nn.Module, found: fx.Node) -> None:
        if isinstance(block, nn.MultiheadAttention):
            for user in list(node.users):
                user.replace_all_uses_with(found)
                self.graph.erase_node(user)
        else:
            node.replace_all_uses_with(found)
        self.graph.erase_node(node)

    def call(self, path: str, x: fx.Node) -> fx.Node:
        """A layer that keeps the shape."""
        return self._known(self.graph.call_module(path, (x,)), x)

    def add(self, x: fx.Node, y: fx.Node) -> fx.Node:
        return self._known(self.graph.call_function(operator.add, (x, y)), x)

    def _known(self, node: fx.Node, like: fx.Node) -> fx.Node:
        self.values[node] = self.values[like]
        return node

    def encoder(self, stack: nn.TransformerEncoder, node: fx.Node) -> fx.Node:
        given = _bound(stack, node)
        x = given.pop("src")
        masks = {"src_mask": given.get("mask"), "src_key_padding_mask": given.get("src_key_padding_mask")}
        for place in range(len(stack.layers)):
            x = self._known(self.graph.call_module(f"{node.target}.layers.{place}", (x,), dict(masks)), x)
        return x if stack.norm is None else self.call(f"{node.target}.norm", x)

    def encoder_layer(self, layer: nn.TransformerEncoderLayer, node: fx.Node) -> fx.Node:
        given, path = _bound(layer, node), str(node.target)
        x = given["src"]
        if given.get("is_causal") and given.get("src_mask") is None:
            raise _Closed("is_causal stands for a mask that it is not given")

        def attend(x: fx.Node) -> fx.Node:
            return self._attend(path, "self_attn", x, x, given.get("src_mask"), given.get("src_key_padding_mask"), 1)

        return self._blocks(layer, path, x, [attend, lambda x: self._feed(layer, path, x, 2)])

    def decoder_layer(self, layer: nn.TransformerDecoderLayer, node: fx.Node) -> fx.Node:
        given, path = _bound(layer, node), str(node.target)
        x, memory = given["tgt"], given["memory"]
        for kind, mask in (("tgt_is_causal", "tgt_mask"), ("memory_is_causal", "memory_mask")):
            if given.get(kind) and given.get(mask) is None:
                raise _Closed("is_causal stands for a mask that it is not given")

        def attend(x: fx.Node) -> fx.Node:
            return self._attend(path, "self_attn", x, x, given.get("tgt_mask"), given.get("tgt_key_padding_mask"), 1)

        def cross(x: fx.Node) -> fx.Node:
            masks = given.get("memory_mask"), given.get("memory_key_padding_mask")
            return self._attend(path, "multihead_attn", x, memory, *masks, 2)

        return self._blocks(layer, path, x, [attend, cross, lambda x: self._feed(layer, path, x, 3)])

    def _blocks(self, layer: Any, path: str, x: fx.Node, blocks: list[Callable[[fx.Node], fx.Node]]) -> fx.Node:
        for place, block in enumerate(blocks, 1):
            norm = f"{path}.norm{place}"
            x = self.add(x, block(self.call(norm, x))) if layer.norm_first else self.call(norm, self.add(x, block(x)))
        return x

    def _attend(self, path: str, name: str, x: fx.Node, memory: fx.Node, mask: Any, padding: Any, n: int) -> fx.Node:
        kwargs = {"attn_mask": mask, "key_padding_mask": padding, "need_weights": False}
        both = self.graph.call_module(f"{path}.{name}", (x, memory, memory), kwargs)
        found = self._known(self.graph.call_function(operator.getitem, (both, 0)), x)
        return self.call(f"{path}.dropout{n}", found)

    def _feed(self, layer: Any, path: str, x: fx.Node, n: int) -> fx.Node:
        activation = layer.activation
        found = self.call(f"{path}.linear1", x)
        if isinstance(activation, nn.Module):
            found = self.call(f"{path}.activation", found)
        elif activation in (F.relu, F.gelu):
            found = self._known(self.graph.call_function(activation, (found,)), found)
        else:
            raise _Closed(f"its activation is {getattr(activation, '__name__', activation)}")
        found = self.call(f"{path}.linear2", self.call(f"{path}.dropout", found))
        return self.call(f"{path}.dropout{n}", found)

    def attention(self, layer: nn.MultiheadAttention, node: fx.Node) -> fx.Node:
        """softmax(q kᵀ / √d + mask) v, head by head; dropout in training as the block has it."""
        given, path, graph = _bound(layer, node), str(node.target), self.graph
        query, key, value = given["query"], given["key"], given["value"]
        for user in node.users:
            if user.target is not operator.getitem or (user.args[1] != 0 and user.users):
                raise _Closed("its attention weights are used")
        if layer.bias_k is not None or layer.add_zero_attn:
            raise _Closed("it attends to keys of its own (add_bias_kv, add_zero_attn)")
        if any(len(self.values[n].shape) != 3 for n in (query, key, value)):
            raise _Closed("it is given rows without a batch")
        if given.get("is_causal") and given.get("attn_mask") is None:
            raise _Closed("is_causal stands for a mask that it is not given")
        mask = self._mask(given.get("attn_mask"), given.get("key_padding_mask"))
        if query is key is value and layer._qkv_same_embed_dim:
            _place_joined(layer)
            three = graph.call_method("chunk", (graph.call_module(f"{path}.in_proj", (query,)), 3, -1))
            made = [graph.call_function(operator.getitem, (three, n)) for n in range(3)]
        else:
            _place_apart(layer)
            sources = (("q_proj", query), ("k_proj", key), ("v_proj", value))
            made = [graph.call_module(f"{path}.{name}", (x,)) for name, x in sources]
        sizes, first = (layer.num_heads, layer.head_dim), layer.batch_first
        there, back = ((0, 2, 1, 3), (0, 2, 1, 3)) if first else ((1, 2, 0, 3), (2, 0, 1, 3))
        split = [graph.call_method("unflatten", (x, -1, sizes)) for x in made]
        q, k, v = (graph.call_method("permute", (x, *there)) for x in split)
        if layer.dropout:
            scores = graph.call_function(operator.mul, (q, layer.head_dim**-0.5))
            scores = graph.call_function(torch.matmul, (scores, graph.call_method("transpose", (k, -2, -1))))
            scores = scores if mask is None else graph.call_function(operator.add, (scores, mask))
            scores = graph.call_function(torch.softmax, (scores, -1))
            layer.add_module("dropout_of_weights", nn.Dropout(layer.dropout).train(layer.training))
            scores = graph.call_module(f"{path}.dropout_of_weights", (scores,))
            mixed = graph.call_function(torch.matmul, (scores, v))
        else:
            masks: dict[str, Any] = {} if mask is None else {"attn_mask": mask}
            mixed = graph.call_function(F.scaled_dot_product_attention, (q, k, v), masks)
        merged = graph.call_method("flatten", (graph.call_method("permute", (mixed, *back)), 2))
        layer.add_module("output", _linear(layer.out_proj.weight, layer.out_proj.bias, layer.training))
        return self._known(graph.call_module(f"{path}.out_proj", (merged,)), query)

    def _mask(self, mask: Any, padding: Any) -> fx.Node | None:
        """One mask of numbers that are added, from one (r, c) and one (rows, c); True in either means: not this one."""
        found = None
        if isinstance(mask, fx.Node):
            if len(self.values[mask].shape) != 2:
                raise _Closed("its mask is one for every head")
            found = self._added(mask)
        if isinstance(padding, fx.Node):
            there = self.graph.call_method("unsqueeze", (self._added(padding), 1))
            there = self.graph.call_method("unsqueeze", (there, 2))
            found = there if found is None else self.graph.call_function(operator.add, (found, there))
        if not all(m is None or isinstance(m, fx.Node) for m in (mask, padding)):
            raise _Closed("its mask is no tensor")
        return found

    def _added(self, mask: fx.Node) -> fx.Node:
        if self.values[mask].dtype != torch.bool:
            return mask
        zeros = self.graph.call_function(torch.zeros_like, (mask,), {"dtype": torch.float32})
        return self.graph.call_method("masked_fill", (zeros, mask, float("-inf")))


_FORMS: dict[type[nn.Module], Callable[[_Unfolding, Any, fx.Node], fx.Node]] = {
    nn.TransformerEncoder: _Unfolding.encoder,
    nn.TransformerEncoderLayer: _Unfolding.encoder_layer,
    nn.TransformerDecoderLayer: _Unfolding.decoder_layer,
    nn.MultiheadAttention: _Unfolding.attention,
}


def _is_block(module: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and type(module.get_submodule(str(node.target))) in _FORMS


def _bound(layer: nn.Module, node: fx.Node) -> dict[str, Any]:
    return inspect.signature(type(layer).forward).bind(layer, *node.args, **node.kwargs).arguments


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, training: bool) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta").train(training)
    made.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return made


def _place_joined(layer: Any) -> None:
    if hasattr(layer, "q_proj"):
        raise _Closed("it is called in two ways")
    layer.in_proj = _linear(layer.in_proj_weight, layer.in_proj_bias, layer.training)


def _place_apart(layer: Any) -> None:
    if hasattr(layer, "in_proj"):
        raise _Closed("it is called in two ways")
    joined = layer._qkv_same_embed_dim
    weights = layer.in_proj_weight.chunk(3) if joined else [getattr(layer, f"{n}_proj_weight") for n in "qkv"]
    biases = [None] * 3 if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    for name, weight, bias in zip("qkv", weights, biases, strict=True):
        layer.add_module(f"{name}_proj", _linear(weight, bias, layer.training))


def _container(block: nn.Module) -> nn.Module:
    """What is left of a block that is written out: its layers under their names."""
    found = nn.Module().train(block.training)
    for name, child in block.named_children():
        if name != "output":
            found.add_module(name, getattr(block, "output", child) if name == "out_proj" else child)
    return found
