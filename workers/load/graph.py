"""The `graph` form of an architecture → a torch.fx GraphModule. Everything in it is hostile until `check` has passed.

Nothing here looks a name up by walking attributes: every function, method and layer comes out of an explicit table, and
whatever ends up in the source that torch.fx generates (names, paths, keywords) must be a plain identifier.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from typing import Any

import torch
from enginesmith import allowed
from enginesmith.graph import is_in_place
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import fx, nn

from app.errors import BadArchitecture
from workers.load.values import MAX_DEPTH, decode, depth_of, references

MAX_NODES = 50_000
# Layers per RNN, copies per module: what a constructor loops over in Python.
_LOOPED = {"num_layers": 256}


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModuleData(_Data):
    type: str = Field(max_length=100)
    kwargs: dict[str, Any] = {}


class TensorData(_Data):
    kind: str = Field(pattern="^(parameter|buffer)$")
    shape: list[int] = Field(max_length=16)
    dtype: str = Field(max_length=20)


class NodeData(_Data):
    op: str = Field(pattern="^(placeholder|get_attr|call_module|call_function|call_method|output)$")
    name: str = Field(max_length=200)
    target: str = Field(max_length=400)
    args: list[Any] = Field([], max_length=10_000)
    kwargs: dict[str, Any] = {}


class GraphData(_Data):
    """`{"version": 1, "modules": {path: …}, "nodes": […], "tensors"?: {path: …}, "tied"?: {name: name}}`."""

    version: int
    modules: dict[str, ModuleData]
    nodes: list[NodeData] = Field(min_length=2, max_length=MAX_NODES)
    tensors: dict[str, TensorData] = {}
    tied: dict[str, str] = {}


def check(data: Any) -> GraphData:
    """The typed graph, or BadArchitecture naming the node and the reason."""
    if depth_of(data) > MAX_DEPTH:
        raise BadArchitecture(f"the graph is nested deeper than {MAX_DEPTH} levels", code="bad_architecture")
    try:
        graph = GraphData.model_validate(data)
    except ValidationError as error:
        raise _schema_problem(data, error) from None
    if graph.version != allowed.VERSION:
        raise BadArchitecture(
            f"the graph is of version {graph.version}; this installation reads version {allowed.VERSION}",
            hint="use a client and a service of the same release",
        )
    _check_paths(graph)
    for path, module in graph.modules.items():
        _check_module(path, module)
    seen: set[str] = set()
    for place, node in enumerate(graph.nodes):
        _check_node(graph, node, seen)
        if node.name in seen:
            raise _bad(node, "there are two nodes of that name")
        if (node.op == "output") != (place == len(graph.nodes) - 1):
            raise _bad(node, "the last node, and only the last, is the output")
        seen.add(node.name)
    if graph.nodes[0].op != "placeholder":
        raise BadArchitecture("the graph has no input: its first node must be a placeholder")
    return graph


def build(data: Any) -> fx.GraphModule:
    """A GraphModule of real torch.nn layers on the meta device, without weights: `assign` gives it some.

    Deterministic. Allocates nothing. Raises BadArchitecture naming the module or node.
    """
    graph = check(data)
    root = nn.Module()
    for path, module in graph.modules.items():
        _place(root, path, _layer(path, module))
    for path, tensor in graph.tensors.items():
        _place_tensor(root, path, tensor)
    for name, other in graph.tied.items():
        _tie(root, name, other)
    built = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for node in graph.nodes:
        nodes[node.name] = _add(built, node, nodes, root)
    try:
        built.lint()
        module = fx.GraphModule(root, built, class_name="Network")
    except (RuntimeError, ValueError, SyntaxError, RecursionError) as error:
        raise BadArchitecture(f"the graph holds together badly: {error}") from error
    return module


def inputs(graph: Mapping[str, Any]) -> list[str]:
    """The names of the placeholders of a checked graph, in order."""
    return [str(n["target"]) for n in graph["nodes"] if n["op"] == "placeholder"]


def outputs(graph: Mapping[str, Any]) -> list[str] | None:
    """The names of the outputs where a checked graph returns a dict, else None."""
    value = graph["nodes"][-1]["args"][0]
    return list(value["$dict"]) if isinstance(value, dict) and "$dict" in value else None


def _bad(node: NodeData, why: str, hint: str | None = None) -> BadArchitecture:
    return BadArchitecture(f"node {node.name!r} ({node.op} of {node.target!r}): {why}", hint=hint)


def _schema_problem(data: Any, error: ValidationError) -> BadArchitecture:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    first = found[0]
    where = ".".join(str(p) for p in first["loc"])
    if len(first["loc"]) > 1 and first["loc"][0] == "nodes" and isinstance(first["loc"][1], int):
        node = data["nodes"][first["loc"][1]]
        name = node.get("name") if isinstance(node, dict) else None
        where = f"{where} (node {str(name)[:80]!r})" if name else where
    return BadArchitecture(
        f"the graph is not well formed at {where or 'its top'}: {first['msg']}",
        hint="let the client write it: enginesmith.export(model, example)",
        errors=[{"loc": ["architecture", "graph", *e["loc"]], "msg": e["msg"]} for e in found[:20]],
    )


def _check_paths(graph: GraphData) -> None:
    paths = [*graph.modules, *graph.tensors]
    for path in paths:
        if not allowed.PATH.match(path):
            raise BadArchitecture(f"the path {path[:100]!r} is no dotted name of letters, digits and underscores")
        root = path.split(".", 1)[0]
        if hasattr(nn.Module, root) or hasattr(fx.GraphModule, root) or root in ("training", "_graph", "_code"):
            raise BadArchitecture(f"the path {path!r} begins with a name that torch keeps for itself")
    if len(set(paths)) != len(paths):
        raise BadArchitecture("a path names a module and a tensor at once")
    modules = set(graph.modules)
    for path in paths:
        parts = path.split(".")
        above = next((".".join(parts[:n]) for n in range(1, len(parts)) if ".".join(parts[:n]) in modules), None)
        if above:
            raise BadArchitecture(f"the path {path!r} lies inside the layer {above!r}")
        if any(hasattr(nn.Module, p) for p in parts):
            raise BadArchitecture(f"the path {path!r} holds a name that torch keeps for itself")
    for name, other in graph.tied.items():
        if not allowed.PATH.match(name) or not allowed.PATH.match(other):
            raise BadArchitecture(f"the tie {name[:80]!r} → {other[:80]!r} names no tensors")


def _check_module(path: str, module: ModuleData) -> None:
    if module.type not in allowed.layers():
        raise BadArchitecture(
            f"the module {path!r} is of type {module.type!r}, which is no layer of torch.nn that a network as data may hold",
            hint=_alike(module.type, allowed.layers()),
        )
    for key, value in module.kwargs.items():
        limit = _LOOPED.get(key, 2**31)
        for number in _numbers(value):
            if abs(number) > limit:
                raise BadArchitecture(f"the module {path!r} ({module.type}): {key}={number} is larger than {limit}")
        if key in ("device", "dtype") or key.startswith("_") or not allowed.IDENTIFIER.match(key):
            raise BadArchitecture(f"the module {path!r} ({module.type}): the argument {key!r} is not taken")


def _check_node(graph: GraphData, node: NodeData, seen: set[str]) -> None:
    if not allowed.IDENTIFIER.match(node.name):
        raise BadArchitecture(f"the node name {node.name[:100]!r} is no identifier")
    for key in node.kwargs:
        if not allowed.IDENTIFIER.match(key) or keyword.iskeyword(key):
            raise _bad(node, f"the keyword {key[:100]!r} is no identifier")
    try:
        named = references([node.args, node.kwargs])
    except ValueError as error:
        raise _bad(node, str(error)) from None
    for name in named:
        if name not in seen:
            raise _bad(node, f"it uses {name!r}, which no earlier node gives")
    _TARGETS[node.op](graph, node)


def _check_placeholder(graph: GraphData, node: NodeData) -> None:
    if not allowed.IDENTIFIER.match(node.target) or keyword.iskeyword(node.target):
        raise _bad(node, "an input's name must be an identifier")
    if node.args or node.kwargs:
        raise _bad(node, "an input has no arguments")


def _check_get_attr(graph: GraphData, node: NodeData) -> None:
    if node.target in graph.tensors:
        return
    owner, _, name = node.target.rpartition(".")
    while owner and owner not in graph.modules:
        owner, _, more = owner.rpartition(".")
        name = f"{more}.{name}"
    if not owner:
        raise _bad(node, "neither `tensors` nor a module of the graph holds a tensor of that name")
    if name not in _layer(owner, graph.modules[owner]).state_dict():
        raise _bad(node, f"the layer {owner!r} has no tensor {name!r}")


def _check_call_module(graph: GraphData, node: NodeData) -> None:
    if node.target not in graph.modules:
        raise _bad(node, "`modules` has no such path")


def _check_function(graph: GraphData, node: NodeData) -> None:
    if node.target not in allowed.functions():
        raise _bad(
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
        raise _bad(node, f"of a tensor only these may be asked: {', '.join(sorted(allowed.ATTRIBUTES))}")
    _check_in_place(graph, node)


def _check_method(graph: GraphData, node: NodeData) -> None:
    if node.target not in allowed.METHODS:
        raise _bad(
            node,
            "this tensor method is not among those that a network as data may call",
            _alike(node.target, allowed.METHODS),
        )
    if not node.args or not isinstance(node.args[0], dict) or "$node" not in node.args[0]:
        raise _bad(node, "a method's first argument must be the result of a node")
    _check_in_place(graph, node)


def _check_in_place(graph: GraphData, node: NodeData) -> None:
    first = node.args[0] if node.args else None
    if is_in_place(node.target) and isinstance(first, dict) and "$node" in first:
        source = next((n for n in graph.nodes if n.name == first["$node"]), None)
        if source is not None and source.op == "get_attr":
            raise _bad(node, f"it would change the network's own tensor {source.target!r} in forward")


def _check_output(graph: GraphData, node: NodeData) -> None:
    if node.kwargs or len(node.args) != 1 or not references(node.args):
        raise _bad(node, "the output takes one argument, which must come from a node")


_TARGETS = {
    "placeholder": _check_placeholder,
    "get_attr": _check_get_attr,
    "call_module": _check_call_module,
    "call_function": _check_function,
    "call_method": _check_method,
    "output": _check_output,
}


def _alike(name: str, names: Any) -> str | None:
    import difflib

    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.75)
    return f"did you mean {' or '.join(close)}?" if close else None


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list):
        return [n for v in value for n in _numbers(v)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def _layer(path: str, module: ModuleData) -> nn.Module:
    try:
        kwargs = {k: _argument(decode(v, {})) for k, v in module.kwargs.items()}
        with torch.device("meta"):
            return allowed.layers()[module.type](**kwargs)
    except (
        TypeError,
        ValueError,
        RuntimeError,
        AssertionError,
        IndexError,
        ZeroDivisionError,
        AttributeError,
    ) as error:
        raise BadArchitecture(
            f"the layer {path!r}: torch.nn.{module.type} refuses its arguments: {error}",
            hint=f"the arguments of torch.nn.{module.type} are in PyTorch's documentation",
        ) from error


def _argument(value: Any) -> Any:
    # JSON has no tuples, and torch.nn wants them where it takes several numbers.
    return tuple(_argument(v) for v in value) if isinstance(value, list) else value


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    owner, name = _owner(root, path)
    owner.add_module(name, module)


def _place_tensor(root: nn.Module, path: str, tensor: TensorData) -> None:
    if tensor.dtype not in allowed.dtypes() or any(d < 0 or d > 2**40 for d in tensor.shape):
        raise BadArchitecture(f"the tensor {path!r} has no such shape or dtype: {tensor.shape}, {tensor.dtype!r}")
    owner, name = _owner(root, path)
    try:
        value = torch.empty(tensor.shape, dtype=allowed.dtypes()[tensor.dtype], device="meta")
        if tensor.kind == "parameter":
            owner.register_parameter(name, nn.Parameter(value))
        else:
            owner.register_buffer(name, value)
    except (RuntimeError, KeyError) as error:
        raise BadArchitecture(f"the tensor {path!r}: {error}") from error


def _owner(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    *above, name = path.split(".")
    owner = root
    for part in above:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        inner = owner._modules[part]
        assert inner is not None
        owner = inner
    return owner, name


def _tie(root: nn.Module, name: str, other: str) -> None:
    parameters = dict(root.named_parameters(remove_duplicate=False))
    if name not in parameters or other not in parameters or parameters[name].shape != parameters[other].shape:
        raise BadArchitecture(
            f"the parameters {name!r} and {other!r} cannot be one: they are missing, or differ in shape"
        )
    owner, last = _owner(root, name)
    owner.register_parameter(last, parameters[other])


def _add(graph: fx.Graph, node: NodeData, nodes: dict[str, fx.Node], root: nn.Module) -> fx.Node:
    try:
        args = tuple(decode(a, nodes) for a in node.args)
        kwargs = {k: decode(v, nodes) for k, v in node.kwargs.items()}
    except ValueError as error:
        raise _bad(node, str(error)) from None
    target: Any = allowed.functions()[node.target] if node.op == "call_function" else node.target
    if node.op == "output":
        return graph.output(args[0])
    return graph.create_node(node.op, target, args, kwargs, name=node.name)
