"""Rewriting a graph after channels have gone: constants in view, split, pad and slices that were channel counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from workers.nn import moves
from workers.nn.graph import Traced
from workers.nn.labels import Ids, Labels

Left = Callable[[Ids], int]  # how many of these labels are left


def rewrite(traced: Traced, left: Left, module: fx.GraphModule) -> None:
    """Sets the constants in `module`, a copy of the traced one. Sizes that the graph computes are left as they are."""
    for node, twin in zip(traced.module.graph.nodes, module.graph.nodes, strict=True):
        labels = traced.labels[node]
        if node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            if isinstance(layer, nn.Unflatten) and isinstance(labels, Labels) and labels.axis is not None:
                sizes = list(layer.unflattened_size)
                place = labels.axis - int(layer.dim) % (len(labels.shape) - len(sizes) + 1)
                layer.unflattened_size = tuple(_sized(sizes, place, left(labels.ids)))
        elif node.op in ("call_function", "call_method"):
            change = _CHANGES.get(moves.name_of(node))
            source = node.args[0] if node.args else None
            x = traced.labels.get(source) if isinstance(source, fx.Node) else None
            if change is not None and isinstance(x, Labels):
                change(twin, x, labels, left)
    module.graph.lint()
    module.recompile()


def _sized(sizes: list[Any], place: int, n: int) -> list[Any]:
    """`sizes` with the literal at `place` set to n; -1 and what is computed stay."""
    if 0 <= place < len(sizes) and isinstance(sizes[place], int) and sizes[place] != -1:
        sizes[place] = n
    return sizes


def _argument(node: fx.Node, position: int, *names: str) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return next((node.kwargs[n] for n in names if n in node.kwargs), None)


def _set_argument(node: fx.Node, position: int, value: Any, *names: str) -> None:
    if len(node.args) > position:
        node.update_arg(position, value)
    else:
        node.update_kwarg(next(n for n in names if n in node.kwargs), value)


def _shape(twin: fx.Node, x: Labels, out: Any, left: Left) -> None:
    """view, reshape, expand: the sizes as one tuple, or one by one."""
    if not isinstance(out, Labels) or out.axis is None:
        return
    sizes = _argument(twin, 1, "shape", "size")
    if isinstance(sizes, (list, tuple)):
        _set_argument(twin, 1, tuple(_sized(list(sizes), out.axis, left(out.ids))), "shape", "size")
    else:
        twin.args = (twin.args[0], *_sized(list(twin.args[1:]), out.axis, left(out.ids)))


def _unflatten(twin: fx.Node, x: Labels, out: Any, left: Left) -> None:
    dim, sizes = _argument(twin, 1, "dim"), _argument(twin, 2, "sizes")
    if isinstance(out, Labels) and out.axis is not None and isinstance(dim, int) and isinstance(sizes, (list, tuple)):
        new = _sized(list(sizes), out.axis - dim % len(x.shape), left(out.ids))
        _set_argument(twin, 2, tuple(new), "sizes")


def _split(twin: fx.Node, x: Labels, out: Any, left: Left) -> None:
    names = ("split_size_or_sections", "split_size")
    dim = _argument(twin, 2, "dim") or 0
    if not isinstance(out, tuple) or not isinstance(dim, int) or dim % len(x.shape) != x.axis:
        return
    sizes = [left(ids) for part in out if (ids := part.along(x.axis)) is not None]
    _set_argument(twin, 1, sizes if isinstance(_argument(twin, 1, *names), (list, tuple)) else sizes[0], *names)


def _slice(twin: fx.Node, x: Labels, out: Any, left: Left) -> None:
    index = twin.args[1]
    elements = list(index) if isinstance(index, tuple) else [index]
    position = 0
    for element, axis in moves.placed(index, len(x.shape)):
        while elements[position] is None or elements[position] is Ellipsis:
            position += 1
        if axis == x.axis:
            elements[position] = _moved(element, x.ids, left)
        position += 1
    twin.update_arg(1, tuple(elements) if isinstance(index, tuple) else elements[0])


def _moved(element: Any, ids: Ids, left: Left) -> Any:
    """A number or slice along the channels, counted in what is left."""
    if isinstance(element, int):
        return left(ids[: element % len(ids)])
    if isinstance(element, slice) and element != slice(None):
        start, stop, _ = element.indices(len(ids))
        return slice(left(ids[:start]), left(ids[: max(start, stop)]), None)
    return element


def _pad(twin: fx.Node, x: Labels, out: Any, left: Left) -> None:
    if not isinstance(out, Labels) or out.axis is None:
        return
    amounts, place = list(_argument(twin, 1, "pad")), 2 * (len(out.shape) - 1 - out.axis)
    if len(amounts) > place:
        before, after = amounts[place : place + 2]
        if isinstance(before, int) and isinstance(after, int):
            amounts[place] = left(out.ids[:before])
            amounts[place + 1] = left(out.ids[len(out.ids) - after :])
            _set_argument(twin, 1, tuple(amounts), "pad")


_CHANGES: dict[str, Callable[[fx.Node, Labels, Any, Left], None]] = {
    "view": _shape,
    "reshape": _shape,
    "expand": _shape,
    "unflatten": _unflatten,
    "split": _split,
    "getitem": _slice,
    "pad": _pad,
}
