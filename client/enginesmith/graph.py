"""A network as data: a torch.fx GraphModule of torch.nn layers → the `graph` form of an architecture.

The client's `export` uses it on what it traced, a worker on what it pruned. The way back is workers/load/graph.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import allowed
from .errors import EnginesmithError
from .layers import arguments

if TYPE_CHECKING:
    import torch
    from torch import fx, nn


class NotExpressible(EnginesmithError):
    """A network that cannot travel as data: the message names the operation and, where known, the owner's line."""

    def __init__(self, detail: str, *, line: str | None = None, hint: str | None = None) -> None:
        super().__init__(f"{detail}\n  at {line}" if line else detail)
        self.detail = detail
        self.line = line
        self.hint = hint


def describe(module: fx.GraphModule) -> dict[str, Any]:
    """`{"graph": {...}}`: JSON data from which the network can be built again; its weights are not in it.

    Raises NotExpressible for a layer, function, method or value outside `allowed`.
    """
    used, tensors = set[str](), dict[str, dict[str, Any]]()
    nodes = []
    for node in module.graph.nodes:
        nodes.append(_node(module, node))
        if node.op == "call_module":
            used.add(str(node.target))
    if kept := next((p for p in used if allowed.reserved() & set(p.split("."))), None):
        raise NotExpressible(f"the layer {kept!r} has a name that torch keeps for itself", hint="rename the attribute")
    modules = {path: _layer(module, path) for path in sorted(used, key=_order(module))}
    for node in module.graph.nodes:
        if node.op == "get_attr" and not _inside(str(node.target), used):
            tensors[str(node.target)] = _tensor(module, node)
    graph: dict[str, Any] = {"version": allowed.VERSION, "modules": modules, "nodes": nodes}
    if tensors:
        graph["tensors"] = tensors
    if tied := ties(module, [*modules, *tensors]):
        graph["tied"] = tied
    return {"graph": graph}


def weights(module: nn.Module, architecture: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors that belong to a described network, on the CPU, contiguous, each once: what goes into safetensors."""
    graph = architecture["graph"]
    tied = graph.get("tied", {})
    found = {}
    for path in graph["modules"]:
        for key, value in module.get_submodule(path).state_dict().items():
            found[f"{path}.{key}"] = value
    for path in graph.get("tensors", {}):
        found[path] = _attribute(module, path)
    return {k: v.detach().cpu().contiguous().clone() for k, v in found.items() if k not in tied}


def ties(module: nn.Module, paths: list[str]) -> dict[str, str]:
    """Parameters that are one and the same object under several names: {later name: first name}."""
    import torch

    first: dict[int, str] = {}
    found = {}
    for path in paths:
        thing = _attribute(module, path)
        inner = (
            {path: thing}
            if isinstance(thing, torch.Tensor)
            else {f"{path}.{k}": v for k, v in thing.named_parameters(remove_duplicate=False)}
        )
        for name, tensor in inner.items():
            known = first.setdefault(id(tensor), name)
            if known != name:
                found[name] = known
    return found


def line_of(node: fx.Node) -> str | None:
    """The owner's source line that made a node, if tracing kept it: `file.py:12: x = foo(x)`."""
    trace = node.stack_trace
    if not trace:
        return None
    ours = ("/torch/", str(Path(__file__).parent))
    frames = [f for f in trace.split("  File ") if f.strip() and not any(path in f for path in ours)]
    if not frames:
        return None
    where, _, code = frames[-1].strip().removeprefix("File ").partition("\n")
    file, _, rest = where.partition(", line ")
    first = code.strip().splitlines()[0] if code.strip() else ""
    return f"{file.strip(chr(34))}:{rest.split(',')[0]}: {first}".rstrip(": ")


def _node(module: fx.GraphModule, node: fx.Node) -> dict[str, Any]:
    target = str(node.target)
    if node.op == "call_function":
        name = allowed.function_names().get(id(node.target))
        if name is None:
            raise NotExpressible(
                f"the function {_called(node.target)} (node {node.name!r}) is not among those that a network as data "
                "may call",
                line=line_of(node),
                hint="write it with functions of torch and torch.nn.functional, or push TorchScript or ONNX instead",
            )
        target = name
        if name == "builtins.getattr" and node.args[1] not in allowed.ATTRIBUTES:
            raise NotExpressible(f"the attribute {node.args[1]!r} of a tensor (node {node.name!r})", line=line_of(node))
    elif node.op == "call_method" and target not in allowed.METHODS:
        raise NotExpressible(
            f"the tensor method {target!r} (node {node.name!r}) is not among those that a network as data may call",
            line=line_of(node),
            hint="it leaves the tensors (.item(), .numpy()), draws random numbers, or changes something in place",
        )
    elif node.op == "get_attr":
        _tensor(module, node)
    if is_in_place(target if node.op in ("call_function", "call_method") else "") and _is_state(node):
        raise NotExpressible(
            f"{target!r} (node {node.name!r}) changes the network's own tensor {node.args[0]} in forward",
            line=line_of(node),
            hint="a network as data keeps no state between calls",
        )
    value = _Values(node)
    return {
        "op": node.op,
        "name": node.name,
        "target": target,
        "args": [value(a) for a in node.args],
        "kwargs": {k: value(a) for k, a in node.kwargs.items()},
    }


def is_in_place(target: str) -> bool:
    """Whether a method or function writes into its first argument."""
    last = target.rsplit(".", 1)[-1]
    return (last.endswith("_") and not last.endswith("__") and last not in ("and_", "or_", "not_")) or last in (
        "iadd", "isub", "imul", "itruediv", "ifloordiv",
    )  # fmt: skip


def _is_state(node: fx.Node) -> bool:
    from torch import fx

    return bool(node.args) and isinstance(node.args[0], fx.Node) and node.args[0].op == "get_attr"


class _Values:
    """Turns the arguments of one node into JSON: tensors become references, what JSON lacks is tagged."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node

    def __call__(self, value: Any) -> Any:
        import torch
        from torch import fx

        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"$float": str(value)}
        if isinstance(value, fx.Node):
            return {"$node": value.name}
        if isinstance(value, tuple):
            return {"$tuple": [self(v) for v in value]}
        if isinstance(value, list):
            return [self(v) for v in value]
        if isinstance(value, slice):
            return {"$slice": [self(v) for v in (value.start, value.stop, value.step)]}
        if isinstance(value, dict) and all(isinstance(k, str) for k in value):
            return {"$dict": {k: self(v) for k, v in value.items()}}
        if value is Ellipsis:
            return {"$ellipsis": True}
        if isinstance(value, torch.dtype):
            return {"$dtype": self._named(allowed.dtypes(), value)}
        if isinstance(value, torch.memory_format):
            return {"$memory_format": self._named(allowed.memory_formats(), value)}
        if isinstance(value, torch.device):
            return {"$device": value.type}
        raise NotExpressible(
            f"the value {value!r} of type {type(value).__name__} (node {self.node.name!r}, {self.node.target})",
            line=line_of(self.node),
        )

    def _named(self, names: Mapping[str, Any], value: Any) -> str:
        for name, known in names.items():
            if known == value:
                return name
        raise NotExpressible(f"the value {value} (node {self.node.name!r})", line=line_of(self.node))


def _layer(module: fx.GraphModule, path: str) -> dict[str, Any]:
    layer = module.get_submodule(path)
    name = allowed.layer_names().get(type(layer))
    if name is None:
        raise NotExpressible(f"the module {path!r} of class {_called(type(layer))} is no layer of torch.nn")
    try:
        return {"type": name, "kwargs": {k: plain(v) for k, v in arguments(layer).items()}}
    except (ValueError, KeyError) as error:
        raise NotExpressible(f"the layer {path!r} ({name}): {error}") from error


def plain(value: Any) -> Any:
    """A constructor argument as JSON; tuples become lists. Raises ValueError."""
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"an argument of type {type(value).__name__} is not data: {value!r}")


def _tensor(module: fx.GraphModule, node: fx.Node) -> dict[str, Any]:
    import torch

    found = _attribute(module, str(node.target))
    if not isinstance(found, torch.Tensor):
        raise NotExpressible(f"{node.target!r} is a {type(found).__name__}, not a tensor", line=line_of(node))
    kind = "parameter" if isinstance(found, torch.nn.Parameter) else "buffer"
    return {"kind": kind, "shape": list(found.shape), "dtype": _Values(node)(found.dtype)["$dtype"]}


def _attribute(module: nn.Module, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _inside(path: str, modules: set[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:n]) in modules for n in range(1, len(parts)))


def _order(module: nn.Module) -> Any:
    places = {name: place for place, (name, _) in enumerate(module.named_modules())}
    return lambda path: (places.get(path, len(places)), path)


def _called(thing: Any) -> str:
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None) or repr(thing)
    return f"{module}.{name}" if module and module != "builtins" else name
