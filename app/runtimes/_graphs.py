"""What whoever changes an ONNX graph needs of it: names for nodes, who reads a tensor, what nobody reads any more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# What moves numbers without computing any: int8 goes through.
MOVES = frozenset(
    (
        *("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Slice", "Pad", "Concat", "Split"),
        *("Gather", "Expand", "Tile", "Identity", "DepthToSpace", "SpaceToDepth", "Relu", "Clip"),
    )
)


def opset(model: Any) -> int:
    """The version of ONNX's own operators."""
    return next((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def name_nodes(model: Any) -> None:
    """Gives every node a name of its own, by which what rewrites graphs tells them apart. In place."""
    seen: set[str] = set()
    for place, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{place}"
            while node.name in seen:
                node.name += "_"
        seen.add(node.name)


def users_of(graph: Any) -> dict[str, list[Any]]:
    """Tensor → the nodes that take it."""
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        for tensor in node.input:
            found.setdefault(tensor, []).append(node)
    return found


def drop_unused(graph: Any) -> None:
    """Takes out nodes and initializers that lead to no output. In place."""
    while True:
        used = {t for n in graph.node for t in _all_inputs(n)} | {o.name for o in graph.output}
        dead = [n for n in graph.node if not any(out in used for out in n.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    kept = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def graphs(graph: Any) -> list[Any]:
    """A graph and those of its branches and loops."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            found += [g for inner in (attribute.g, *attribute.graphs) if inner.node for g in graphs(inner)]
    return found


def _all_inputs(node: Any) -> Iterable[str]:
    """Of a node, and of the graphs inside it, which see the tensors around them."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
            for inner in graph.node:
                yield from _all_inputs(inner)
            yield from (o.name for o in graph.output)
