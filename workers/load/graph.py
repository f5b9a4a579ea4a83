"""The `graph` form of an architecture → a torch.fx GraphModule of real torch.nn layers, once `check` has passed it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from enginesmith import allowed
from torch import fx, nn

from app.errors import BadArchitecture
from workers.load.check import bad, check
from workers.load.schema import ModuleData, NodeData, TensorData
from workers.load.values import decode


def build(data: Any) -> fx.GraphModule:
    """A GraphModule of real torch.nn layers on the meta device, without weights: `assign` gives it some.

    Deterministic. Allocates nothing. Raises BadArchitecture naming the module or node.
    """
    graph = check(data)
    root = nn.Module()
    for path, layer in graph.modules.items():
        _place(root, path, _layer(path, layer))
    for path, tensor in graph.tensors.items():
        _place_tensor(root, path, tensor)
    for name, other in graph.tied.items():
        _tie(root, name, other)
    tensors = root.state_dict().keys()
    for node in graph.nodes:
        if node.op == "get_attr" and node.target not in tensors:
            raise bad(node, "no layer of the graph holds a tensor of that name")
    built = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for node in graph.nodes:
        nodes[node.name] = _add(built, node, nodes, root)
    try:
        built.lint()
        module = fx.GraphModule(root, built, class_name="Network")
    except IndexError as error:  # torch writes operators down with as many operands as they have
        raise BadArchitecture(f"an operator of the graph has too few arguments: {error}") from error
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
        raise bad(node, str(error)) from None
    target: Any = allowed.functions()[node.target] if node.op == "call_function" else node.target
    if node.op == "output":
        return cast(fx.Node, graph.output(args[0]))
    return graph.create_node(node.op, target, args, kwargs, name=node.name)
