"""Rewriting a graph after channels have gone: constants in view, split, pad and slices that were channel counts."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx, nn

from workers.nn import moves
from workers.nn.graph import Traced
from workers.nn.labels import Ids, Labels

_NUMBERS = {"getattr", "getitem", "size", "add", "sub", "mul", "floordiv", "truediv", "pow", "int", "neg"}
Left = Callable[[Ids], int]  # how many of these labels are left


def rewrite(traced: Traced, left: Left, twins: Mapping[fx.Node, fx.Node], module: fx.GraphModule) -> None:
    """Sets the constants in `module`, a copy of the traced one; twins: its nodes by the traced ones.

    What the graph reads off a size stays the number that it was: labels say where another is meant.
    """
    for node, twin in twins.items():
        labels = traced.labels[node]
        if isinstance(old := _size_read(traced, left, node), int):
            for user in list(twin.users):
                put = _instead(twin, old)
                user.args, user.kwargs = fx.node.map_arg(user.args, put), fx.node.map_arg(user.kwargs, put)
        if node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            if isinstance(layer, nn.Unflatten) and isinstance(labels, Labels) and labels.axis is not None:
                sizes = list(layer.unflattened_size)
                place = labels.axis - int(layer.dim) % (len(labels.shape) - len(sizes) + 1)
                layer.unflattened_size = tuple(_sized(sizes, place, labels, left))
        elif node.op in ("call_function", "call_method"):
            change = _CHANGES.get(moves.name_of(node))
            source = node.args[0] if node.args else None
            x = traced.labels.get(source) if isinstance(source, fx.Node) else None
            if change is not None and isinstance(x, Labels):
                change(twin, x, labels, left)
    for node, twin in reversed(list(twins.items())):
        if traced.labels[node] is None and not twin.users and moves.name_of(node) in _NUMBERS:
            module.graph.erase_node(twin)
    module.graph.lint()
    module.recompile()


def _instead(node: fx.Node, number: int) -> Callable[[fx.Node], Any]:
    return lambda n: number if n is node else n


def _size_read(traced: Traced, left: Left, node: fx.Node) -> int | None:
    """The number that x.size(i) or x.shape[i] gave, where i is an axis that channels go from."""
    name, source = moves.name_of(node), node.args[0] if node.args else None
    place = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if name == "getitem" and isinstance(source, fx.Node) and moves.name_of(source) in ("getattr", "size"):
        if moves.name_of(source) == "getattr" and source.args[1] != "shape":
            return None
        whole = len(source.args) + len(source.kwargs) == (2 if moves.name_of(source) == "getattr" else 1)
        source = source.args[0] if whole else None
    elif name != "size":
        return None
    x = traced.labels.get(source) if isinstance(source, fx.Node) else None
    if not isinstance(x, Labels) or not isinstance(place, int) or place % len(x.shape) != x.axis:
        return None
    return x.shape[x.axis] if left(x.ids) != len(x.ids) else None


def _sized(sizes: list[Any], place: int, labels: Labels, left: Left) -> list[Any]:
    """`sizes` with what is left at `place`, where they say a number: -1 stays, and a computed one becomes it."""
    n = left(labels.ids)
    if 0 <= place < len(sizes) and n != len(labels.ids) and sizes[place] != -1:
        computed = isinstance(sizes[place], fx.Node)
        sizes[place] = -1 if computed and -1 not in sizes else n
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
        _set_argument(twin, 1, tuple(_sized(list(sizes), out.axis, out, left)), "shape", "size")
    elif len(twin.args) + len(twin.kwargs) == 2 and len(out.shape) > 1:  # one torch.Size, which the graph puts together
        if left(out.ids) != len(out.ids):
            items: list[Any] = [left(out.ids)] * len(out.shape)
            with twin.graph.inserting_before(twin):
                for place in set(range(len(items))) - {out.axis}:
                    items[place] = twin.graph.call_function(operator.getitem, (sizes, place))
            _set_argument(twin, 1, tuple(items), "shape", "size")
    else:
        twin.args = (twin.args[0], *_sized(list(twin.args[1:]), out.axis, out, left))


def _unflatten(twin: fx.Node, x: Labels, out: Any, left: Left) -> None:
    dim, sizes = _argument(twin, 1, "dim"), _argument(twin, 2, "sizes")
    if isinstance(out, Labels) and out.axis is not None and isinstance(dim, int) and isinstance(sizes, (list, tuple)):
        new = _sized(list(sizes), out.axis - dim % len(x.shape), out, left)
        _set_argument(twin, 2, tuple(new), "sizes")


def _split(twin: fx.Node, x: Labels, out: Any, left: Left) -> None:
    names = ("split_size_or_sections", "split_size")
    dim = _argument(twin, 2, "dim") or 0
    if not isinstance(out, tuple) or not isinstance(dim, int) or dim % len(x.shape) != x.axis:
        return
    sizes = [left(ids) for part in out if (ids := part.along(x.axis)) is not None]
    if not sizes:
        return
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
