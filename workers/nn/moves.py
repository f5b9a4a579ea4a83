"""How labels go through operations without weights: one small handler per family; `rules` has the table.

A handler returns the labels of what the operation gives, or NotImplemented where this very call is not understood.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from workers.nn.labels import FIXED, Labels, Ties, tensors_in

Handler = Callable[["Call"], Any]


def name_of(node: fx.Node) -> str:
    """`view`, `relu`, `add` …: the operation whatever module it is called from, in place or not."""
    name = str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    name = name.removeprefix("_") if name.startswith("_adaptive") else name
    return name.rstrip("_") if not name.startswith("__") else name


def told(node: fx.Node) -> str:
    """A node as messages call it."""
    return f"`{name_of(node)}` ({node.name})"


@dataclass(frozen=True)
class Call:
    """One call in a graph: of a function or method, or of a layer without weights."""

    node: fx.Node
    values: Mapping[fx.Node, Any]
    known: Mapping[fx.Node, Any]
    ties: Ties
    layer: nn.Module | None = None
    heads: dict[fx.Node, Labels] = field(default_factory=dict)  # what products of whole heads give

    @property
    def x(self) -> Any:
        """The labels of the first argument."""
        first = self.node.args[0] if self.node.args else None
        return self.known.get(first) if isinstance(first, fx.Node) else None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values[self.node].shape)

    @property
    def told(self) -> str:
        return told(self.node)

    @property
    def why(self) -> str:
        return f"{self.told} ties them to other channels or to a fixed size"

    def value(self, argument: Any) -> Any:
        """An argument with every node in it replaced by its number, or by its labels spread out."""
        return fx.node.map_arg(argument, self._value)

    def _value(self, node: fx.Node) -> Any:
        labels = self.known.get(node)
        return labels.spread() if isinstance(labels, Labels) else self.values[node]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument that is no tensor, as a number or a tuple of them."""
        args = self.node.args
        return self.value(args[position] if len(args) > position else self.node.kwargs.get(name, default))

    def literal(self, position: int, name: str) -> Any:
        """The same as it stands in the graph: a Node where it is computed."""
        return self.node.args[position] if len(self.node.args) > position else self.node.kwargs.get(name)

    def labelled(self) -> list[Labels]:
        return [t for n in self.node.all_input_nodes for t in tensors_in(self.known.get(n))]

    def compact(self, spread: Any) -> Any:
        """Labels of a tensor of labels, or of a tuple of them."""
        if isinstance(spread, torch.Tensor):
            return self.ties.compact(spread, self.why)
        return tuple(self.compact(s) for s in spread)


def elementwise(call: Call) -> Any:
    """Every element from the elements at its own place: channels that meet are tied."""
    if not isinstance(call.values[call.node], torch.Tensor):
        return NotImplemented
    return meet(call, call.labelled(), call.shape)


def meet(call: Call, parts: list[Labels], out: tuple[int, ...]) -> Labels:
    """The labels of a tensor of shape `out` to which tensors are broadcast. Where two meet they are tied; along an axis
    where one has an extent and no labels, nothing may go from the others."""
    placed = []
    for t in parts:
        shift = len(out) - len(t.shape)
        spread = [a for a in t.axes if t.shape[a] == 1 and out[a + shift] != 1]
        if spread:  # one channel spread over many
            call.ties.fix(t, call.why)
            t = Labels(t.shape)
        placed.append(Labels((1,) * shift + t.shape, tuple(a + shift for a in t.axes), t.ids))
    union = sorted({a for t in placed for a in t.axes})
    if not union:
        return Labels(out)
    shut: set[int] = set()
    grids = []
    for t in placed:
        whole = [a for a in union if t.shape[a] > 1 and a not in t.axes]
        if t.axes:
            view = [out[a] if a in t.axes else 1 for a in union]
            grids.append(t.ids.reshape(view))
        elif len(whole) == len(union):
            grids.append(np.zeros([1] * len(union), np.int64))
            continue
        shut.update(whole)
    full = [out[a] for a in union]
    for other in grids[1:]:
        call.ties.tie(grids[0], other, call.why)
    labelled = next((g for g in grids if (g != FIXED).any()), grids[0])
    return call.ties.close(Labels(out, tuple(union), np.broadcast_to(labelled, full)), shut, call.why)


def moving(call: Call) -> Any:
    """Elements only change places: the operation itself, run on the labels, tells where they went."""
    node, name = call.node, name_of(call.node)
    if name in ("view", "reshape") and any(isinstance(a, torch.dtype) for a in node.args):
        return NotImplemented
    args, kwargs = call.value(node.args), call.value(node.kwargs)
    if name == "view":
        return call.compact(args[0].reshape(*args[1:], **kwargs))
    if call.layer is not None:
        return call.compact(call.layer(*args, **kwargs))
    run: Any = getattr(torch.Tensor, str(node.target)) if node.op == "call_method" else node.target
    return call.compact(run(*args, **kwargs))


def parts(call: Call) -> Any:
    """chunk and split. Where they cut channels, all parts keep the same positions, or a list of sizes is rewritten."""
    x = call.x
    if not isinstance(x, Labels):
        return NotImplemented
    axis = int(call.argument(2, "dim", 0)) % len(x.shape)
    sizes = call.literal(1, "split_size_or_sections" if call.node.op == "call_function" else "split_size")
    found = moving(call)
    if axis not in x.axes:
        return found
    if len(x.axes) > 1:  # a part of every head, say
        call.ties.close(x, [axis], call.why)
        return found
    if isinstance(sizes, (list, tuple)):
        return found if all(isinstance(s, int) for s in sizes) else NotImplemented
    lines = [t.along(axis) for t in found]
    if name_of(call.node) == "split" and not isinstance(sizes, int):
        return NotImplemented
    if any(line is None or len(line) != len(lines[0]) for line in lines):
        return NotImplemented
    for line in lines[1:]:
        call.ties.tie(lines[0], line, call.why)
    return found


def item(call: Call) -> Any:
    """x[…] of a tensor by numbers and slices; of a tuple by number."""
    x, index = call.x, call.node.args[1]
    if isinstance(x, tuple):
        return x[index] if isinstance(index, int) else NotImplemented
    if not isinstance(x, Labels):
        return NotImplemented
    for element, axis in placed(index, len(x.shape)):
        if isinstance(element, (fx.Node, list, torch.Tensor)) and not isinstance(call.value(element), int):
            return NotImplemented
        if axis not in x.axes or (isinstance(element, slice) and element == slice(None)):
            continue
        if len(x.axes) > 1:
            call.ties.close(x, [axis], call.why)
        elif not isinstance(element, slice):
            call.ties.fix(
                np.atleast_1d(x.ids[call.value(element)]), f"{call.node.name} takes one channel by its number"
            )
        elif element.step not in (None, 1) or any(isinstance(b, fx.Node) for b in (element.start, element.stop)):
            return NotImplemented
    return call.compact(x.spread()[call.value(index)])


def placed(index: Any, dims: int) -> list[tuple[Any, int]]:
    """The elements of an index that address an axis, with that axis."""
    elements = list(index) if isinstance(index, tuple) else [index]
    consuming = sum(e is not None and e is not Ellipsis for e in elements)
    found, axis = [], 0
    for element in elements:
        if element is Ellipsis:
            axis += dims - consuming
        elif element is not None:
            found.append((element, axis))
            axis += 1
    return found


def pad(call: Call) -> Any:
    """F.pad: new channels get labels of their own, so that they too can go; other axes only grow."""
    x, amounts = call.x, call.literal(1, "pad")
    if not isinstance(x, Labels):
        return NotImplemented
    if not x.axes:
        return Labels(call.shape)
    if x.axis is None:
        return NotImplemented
    place = 2 * (len(x.shape) - 1 - x.axis)
    if not isinstance(amounts, (list, tuple)) or len(amounts) <= place:
        return x.moved(call.shape, x.axes) if isinstance(amounts, (list, tuple)) else NotImplemented
    left, right = amounts[place : place + 2]
    if left == 0 and right == 0:
        return x.moved(call.shape, x.axes)
    if not isinstance(left, int) or not isinstance(right, int) or left < 0 or right < 0:
        return NotImplemented
    if (call.argument(2, "mode", "constant") or "constant") != "constant":
        return NotImplemented
    new = call.ties.fresh(left + right)
    return Labels(call.shape, x.axes, np.concatenate([new[:left], x.ids, new[left:]]))


def reducing(call: Call) -> Any:
    """mean, sum … over axes that are not the channels'."""
    x, out = call.x, call.values[call.node]
    dims = call.argument(1, "dim", call.node.kwargs.get("axis"))
    if not isinstance(x, Labels) or not isinstance(out, torch.Tensor) or dims is None:
        return NotImplemented
    axes = {d % len(x.shape) for d in ((dims,) if isinstance(dims, int) else dims)}
    if not x.axes:
        return Labels(call.shape)
    if not axes or axes >= set(x.axes):
        return NotImplemented
    x = call.ties.close(x, axes, call.why)
    kept = len(out.shape) == len(x.shape)
    return x.moved(call.shape, [a if kept else a - sum(b < a for b in axes) for a in x.axes])


def along_other_axes(call: Call) -> Any:
    """softmax and its kin, over an axis that is not the channels'."""
    x = call.x
    if not isinstance(x, Labels) or not isinstance(call.values[call.node], torch.Tensor):
        return NotImplemented
    if not x.axes:
        return Labels(call.shape)
    if call.layer is not None:
        dim = getattr(call.layer, "dim", None)
    else:
        dim = call.argument(2, "dim", 1) if name_of(call.node) == "normalize" else call.argument(1, "dim")
    if not isinstance(dim, int) or {dim % len(x.shape)} >= set(x.axes):
        return NotImplemented
    return call.ties.close(x, [dim % len(x.shape)], call.why)


def spatial(call: Call) -> Any:
    """Pooling, resizing, padding of the axes after the channels."""
    x = call.x
    if not isinstance(x, Labels) or not isinstance(call.values[call.node], torch.Tensor):
        return NotImplemented
    if not x.axes:
        return Labels(call.shape)
    same = len(call.shape) == len(x.shape) >= 3 and 1 in x.axes and call.shape[1] == x.shape[1]
    if not same:
        return NotImplemented
    return call.ties.close(x, [a for a in x.axes if a != 1], call.why).moved(call.shape, (1,))


def attribute(call: Call) -> Any:
    """x.shape and the like are numbers; x.T moves."""
    x, name = call.x, str(call.node.args[1])
    if name in ("shape", "dtype", "device", "ndim", "is_cuda"):
        return None
    return call.compact(getattr(x.spread(), name)) if isinstance(x, Labels) and name in ("T", "mT") else NotImplemented


def number(call: Call) -> Any:
    return None
