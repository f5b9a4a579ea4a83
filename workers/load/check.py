"""What a graph may hold. Everything in it is hostile until `check` has passed.

Nothing looks a name up by walking attributes: every function, method and layer comes out of an explicit table, and what
ends up in the source that torch.fx generates (names, paths, keywords) must be a plain identifier.
"""

from __future__ import annotations

import difflib
import keyword
from collections.abc import Iterable
from typing import Any

from enginesmith import allowed
from enginesmith.graph import is_in_place
from pydantic import ValidationError

from app.errors import BadArchitecture
from workers.load.schema import GraphData, ModuleData, NodeData, problem
from workers.load.values import MAX_DEPTH, decode, depth_of, references

# Layers per RNN: what a constructor loops over in Python.
_LOOPED = {"num_layers": 256}


def check(data: Any) -> GraphData:
    """The typed graph, or BadArchitecture naming the node and the reason."""
    if depth_of(data) > MAX_DEPTH:
        raise BadArchitecture(f"the graph is nested deeper than {MAX_DEPTH} levels", code="bad_architecture")
    try:
        graph = GraphData.model_validate(data)
    except ValidationError as error:
        raise problem(data, error) from None
    if graph.version != allowed.VERSION:
        raise BadArchitecture(
            f"the graph is of version {graph.version}; this installation reads version {allowed.VERSION}",
            hint="use a client and a service of the same release",
        )
    _check_paths(graph)
    for path, module in graph.modules.items():
        _check_module(path, module)
    # name → what gives it: the operation, and for a tensor of the network its path.
    seen: dict[str, str] = {}
    for place, node in enumerate(graph.nodes):
        _check_node(graph, node, seen)
        if node.name in seen:
            raise bad(node, "there are two nodes of that name")
        if (node.op == "output") != (place == len(graph.nodes) - 1):
            raise bad(node, "the last node, and only the last, is the output")
        seen[node.name] = node.op
    if graph.nodes[0].op != "placeholder":
        raise BadArchitecture("the graph has no input: its first node must be a placeholder")
    return graph


def bad(node: NodeData, why: str, hint: str | None = None) -> BadArchitecture:
    """What is wrong with one node."""
    return BadArchitecture(f"node {node.name!r} ({node.op} of {node.target!r}): {why}", hint=hint)


def _check_paths(graph: GraphData) -> None:
    paths = [*graph.modules, *graph.tensors]
    for path in paths:
        if not allowed.PATH.match(path):
            raise BadArchitecture(f"the path {path[:100]!r} is no dotted name of letters, digits and underscores")
        if kept := next((part for part in path.split(".") if part in allowed.reserved()), None):
            raise BadArchitecture(f"the path {path!r} holds the name {kept!r}, which torch keeps for itself")
    if len(set(paths)) != len(paths):
        raise BadArchitecture("a path names a module and a tensor at once")
    modules = set(graph.modules)
    for path in paths:
        parts = path.split(".")
        above = next((".".join(parts[:n]) for n in range(1, len(parts)) if ".".join(parts[:n]) in modules), None)
        if above:
            raise BadArchitecture(f"the path {path!r} lies inside the layer {above!r}")
    for name, other in graph.tied.items():
        if not allowed.PATH.match(name) or not allowed.PATH.match(other):
            raise BadArchitecture(f"the tie {name[:80]!r} → {other[:80]!r} names no tensors")


def _check_module(path: str, module: ModuleData) -> None:
    if module.type not in allowed.layers():
        raise BadArchitecture(
            f"the module {path!r} is of type {module.type!r}, which is no layer of torch.nn that a graph may hold",
            hint=_alike(module.type, allowed.layers()),
        )
    for key, value in module.kwargs.items():
        limit = _LOOPED.get(key, 2**31)
        for number in _numbers(value):
            if abs(number) > limit:
                raise BadArchitecture(f"the module {path!r} ({module.type}): {key}={number} is larger than {limit}")
        if key in ("device", "dtype") or key.startswith("_") or not allowed.IDENTIFIER.match(key):
            raise BadArchitecture(f"the module {path!r} ({module.type}): the argument {key!r} is not taken")


def _check_node(graph: GraphData, node: NodeData, seen: dict[str, str]) -> None:
    if not allowed.IDENTIFIER.match(node.name):
        raise BadArchitecture(f"the node name {node.name[:100]!r} is no identifier")
    for key in node.kwargs:
        if not allowed.IDENTIFIER.match(key) or keyword.iskeyword(key):
            raise bad(node, f"the keyword {key[:100]!r} is no identifier")
    try:
        for value in (*node.args, *node.kwargs.values()):
            decode(value, seen)
    except ValueError as error:
        raise bad(node, str(error)) from None
    first = node.args[0] if node.args else None
    source = first.get("$node") if isinstance(first, dict) else None
    if source and node.op.startswith("call_") and is_in_place(node.target) and seen[source] == "get_attr":
        raise bad(node, f"it would change the network's own tensor {source!r} in forward")
    _TARGETS[node.op](graph, node)


def _check_placeholder(graph: GraphData, node: NodeData) -> None:
    if not allowed.IDENTIFIER.match(node.target) or keyword.iskeyword(node.target):
        raise bad(node, "an input's name must be an identifier")
    if node.args or node.kwargs:
        raise bad(node, "an input has no arguments")


def _check_get_attr(graph: GraphData, node: NodeData) -> None:
    if node.target in graph.tensors:
        return
    parts = node.target.split(".")
    if not allowed.PATH.match(node.target) or not any(
        ".".join(parts[:n]) in graph.modules for n in range(1, len(parts))
    ):
        raise bad(node, "neither `tensors` nor a module of the graph holds a tensor of that name")


def _check_call_module(graph: GraphData, node: NodeData) -> None:
    if node.target not in graph.modules:
        raise bad(node, "`modules` has no such path")


def _check_function(graph: GraphData, node: NodeData) -> None:
    if node.target not in allowed.functions():
        raise bad(
            node,
            "this function is not among those that a network as data may call",
            _alike(node.target, allowed.functions()),
        )
    if node.target == "builtins.getattr" and (
        len(node.args) != 2
        or node.kwargs
        or not isinstance(node.args[1], str)
        or node.args[1] not in allowed.ATTRIBUTES
    ):
        raise bad(node, f"of a tensor only these may be asked: {', '.join(sorted(allowed.ATTRIBUTES))}")


def _check_method(graph: GraphData, node: NodeData) -> None:
    if node.target not in allowed.METHODS:
        raise bad(
            node,
            "this tensor method is not among those that a network as data may call",
            _alike(node.target, allowed.METHODS),
        )
    if not node.args or not isinstance(node.args[0], dict) or "$node" not in node.args[0]:
        raise bad(node, "a method's first argument must be the result of a node")


def _check_output(graph: GraphData, node: NodeData) -> None:
    if node.kwargs or len(node.args) != 1 or not references(node.args):
        raise bad(node, "the output takes one argument, which must come from a node")


_TARGETS = {
    "placeholder": _check_placeholder,
    "get_attr": _check_get_attr,
    "call_module": _check_call_module,
    "call_function": _check_function,
    "call_method": _check_method,
    "output": _check_output,
}


def _alike(name: str, names: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.75)
    return f"did you mean {' or '.join(close)}?" if close else None


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list):
        return [n for v in value for n in _numbers(v)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []
