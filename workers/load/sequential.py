"""The `sequential` form of an architecture → the graph form; a pickled stack of layers → the sequential form."""

from __future__ import annotations

from typing import Any

from enginesmith import allowed
from enginesmith.graph import plain
from enginesmith.layers import arguments_from, facts_of

from app.errors import BadArchitecture, BadCheckpoint
from workers.load.stubs import Stub

_MAX_LAYERS = 10_000
_EXAMPLE = (
    '{"sequential": [{"type": "Conv2d", "in_channels": 1, "out_channels": 10, "kernel_size": 5}, {"type": "ReLU"}]}'
)
_RECURRENT = ("RNN", "LSTM", "GRU")


def expand(layers: Any, name: str = "x") -> dict[str, Any]:
    """The graph of a plain stack of layers. name: of the input.

    A layer's path is its place, or its "name"; its constructor's arguments lie beside "type". Of a recurrent layer the
    sequence goes on. Raises BadArchitecture.
    """
    if not isinstance(layers, list) or not layers or len(layers) > _MAX_LAYERS:
        raise BadArchitecture(f"`sequential` must be a list of 1 to {_MAX_LAYERS} layers", hint=_EXAMPLE)
    modules: dict[str, Any] = {}
    nodes = [_node("placeholder", name, name, [])]
    last = name
    for place, layer in enumerate(layers):
        if not isinstance(layer, dict) or not isinstance(layer.get("type"), str):
            raise BadArchitecture(f'layer {place} of `sequential` has no "type"', hint=_EXAMPLE)
        path, kind = layer.get("name", str(place)), layer["type"]
        if not isinstance(path, str) or not allowed.PATH.match(path):
            raise BadArchitecture(f"layer {place} of `sequential`: {str(path)[:80]!r} is no dotted name")
        if path in modules:
            raise BadArchitecture(f"two layers of `sequential` are called {path!r}")
        if kind in ("MultiheadAttention", "TransformerDecoderLayer", "Bilinear"):
            raise BadArchitecture(f"layer {place} of `sequential`: {kind} takes several inputs; send a graph")
        extra = layer.get("kwargs", {})
        kwargs = {k: v for k, v in layer.items() if k not in ("type", "name", "kwargs")}
        modules[path] = {"type": kind, "kwargs": kwargs | (extra if isinstance(extra, dict) else {})}
        step = f"layer_{place}"
        nodes.append(_node("call_module", step, path, [{"$node": last}]))
        last = step
        if kind in _RECURRENT:
            last = f"{step}_sequence"
            nodes.append(_node("call_function", last, "operator.getitem", [{"$node": step}, 0]))
    nodes.append(_node("output", "output", "output", [{"$node": last}]))
    return {"version": allowed.VERSION, "modules": modules, "nodes": nodes}


def from_pickled(module: Stub) -> list[dict[str, Any]] | None:
    """The layers of a pickled stack of torch.nn layers, from its data alone; None for any other module."""
    found: list[dict[str, Any]] = []
    return found if _collect(module, "", found, 0) and found else None


def _collect(module: Stub, path: str, found: list[dict[str, Any]], depth: int) -> bool:
    package, _, name = module.path.rpartition(".")
    if not package.startswith("torch.nn.modules") or depth > 50 or len(found) > _MAX_LAYERS:
        return False
    own = vars(module)
    if "forward" in own or own.get("_forward_hooks") or own.get("_forward_pre_hooks"):
        raise BadCheckpoint(
            f"the pickled layer {path or name!r} has its forward replaced or carries hooks, which are code",
            hint="upload its state_dict together with an architecture",
        )
    if name == "Sequential":
        children = own.get("_modules") or {}
        return all(
            isinstance(child, Stub) and _collect(child, f"{path}.{key}" if path else str(key), found, depth + 1)
            for key, child in children.items()
        )
    if name not in allowed.layers():
        return False
    try:
        kwargs = {k: plain(v) for k, v in arguments_from(name, facts_of(module)).items()}
    except (ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(
            f"the pickled layer {path or '0'!r} ({name}): {error}",
            hint="it was saved by another release of PyTorch: upload its state_dict together with an architecture",
        ) from error
    found.append({"type": name, "name": path or "0", **kwargs})
    return True


def _node(op: str, name: str, target: str, args: list[Any]) -> dict[str, Any]:
    return {"op": op, "name": name, "target": target, "args": args, "kwargs": {}}
