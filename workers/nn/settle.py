"""`squeeze` as exporters write it, `If(size == 1) Squeeze else Identity`, taken for the Squeeze that it is.

Its rank would depend on a value, and compilers want ranks. On a size that is not 1 a Squeeze fails, and answers nothing
wrong, where the Identity would have handed on a tensor of another rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

BRANCHES = ("then_branch", "else_branch")


def settle(source: Path, to: Path) -> int:
    """Writes `source` without such conditions; returns how many there were (0: nothing is written)."""
    import onnx

    model = onnx.load(str(source))
    settled = _graph(model.graph)
    if settled:
        onnx.save(model, str(to))
    return settled


def _graph(graph: Any) -> int:
    settled, nodes = 0, []
    for node in graph.node:
        branches = {a.name: a.g for a in node.attribute if a.HasField("g")}
        settled += sum(_graph(branch) for branch in branches.values())
        if node.op_type == "If" and [_operators(branches[b]) for b in BRANCHES] == [["Squeeze"], ["Identity"]]:
            nodes += _inlined(branches["then_branch"], node.output[0])
            graph.initializer.extend(branches["then_branch"].initializer)
            settled += 1
        else:
            nodes.append(node)
    if settled:
        kept = [_copy(n) for n in nodes]
        del graph.node[:]
        graph.node.extend(kept)
    return settled


def _operators(graph: Any) -> list[str]:
    return [n.op_type for n in graph.node if n.op_type != "Constant"]


def _inlined(branch: Any, output: str) -> list[Any]:
    """The nodes of a branch, with the name that the condition gave its result. ONNX names are unique across graphs."""
    nodes = [_copy(n) for n in branch.node]
    for node in nodes:
        for place, name in enumerate(node.output):
            if name == branch.output[0].name:
                node.output[place] = output
    return nodes


def _copy(node: Any) -> Any:
    copy = type(node)()
    copy.CopyFrom(node)
    return copy
