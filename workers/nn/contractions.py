"""How labels go through sums of products: matmul, einsum and attention. What passes them is whole heads.

A head is an index of an axis that the operands share with the result: nothing is summed over it, so that without it
the other heads are what they were. Along all other axes nothing may go: neither a part of a head nor what is summed.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from workers.nn.labels import Labels
from workers.nn.moves import Call, meet

Letters = tuple[str, ...]


def matmul(call: Call) -> Any:
    """a @ b: (…, r, k) and (…, k, c) to (…, r, c)."""
    left, right = _operand(call, 0), _operand(call, 1)
    if left is None or right is None or len(call.node.all_input_nodes) > 2:
        return NotImplemented
    if len(left.shape) < 2 or len(right.shape) < 2:
        return NotImplemented
    letters = _stacked(len(left.shape), "r", "k"), _stacked(len(right.shape), "k", "c")
    return contract(call, [(left, letters[0]), (right, letters[1])], _stacked(len(call.shape), "r", "c"))


def attention(call: Call) -> Any:
    """F.scaled_dot_product_attention of (…, r, k), (…, c, k), (…, c, v) and a mask (…, r, c)."""
    given: dict[Any, Any] = {**dict(enumerate(call.node.args)), **call.node.kwargs}
    if call.value(given.get("enable_gqa", given.get(7, False))):
        return NotImplemented  # as many queries as keys times something: fixed
    operands = []
    for place, name, last in ((0, "query", "rk"), (1, "key", "ck"), (2, "value", "cv"), (3, "attn_mask", "rc")):
        source = given.get(place, given.get(name))
        labels = call.known.get(source) if isinstance(source, fx.Node) else None
        if isinstance(labels, Labels):
            if len(labels.shape) < 2:
                return NotImplemented
            operands.append((labels, _stacked(len(labels.shape), *last)))
        elif source is not None or place < 3:
            return NotImplemented
    return contract(call, operands, _stacked(len(call.shape), "r", "v"))


def einsum(call: Call) -> Any:
    """torch.einsum with its operands one by one and no ellipsis."""
    equation = call.node.args[0]
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return NotImplemented
    before, _, after = equation.replace(" ", "").partition("->")
    operands = [_operand(call, n + 1) for n in range(len(call.node.args) - 1)]
    terms = [tuple(t) for t in before.split(",")]
    if len(terms) != len(operands) or any(len(set(t)) != len(t) for t in terms):
        return NotImplemented
    pairs = [(o, t) for o, t in zip(operands, terms, strict=True) if o is not None and len(o.shape) == len(t)]
    return contract(call, pairs, tuple(after)) if len(pairs) == len(terms) > 1 else NotImplemented


def contract(call: Call, operands: list[tuple[Labels, Letters]], out: Letters) -> Labels:
    """The labels of a sum of products whose operands and result have these letters for axes."""
    shared = [c for c in out if sum(c in letters for _, letters in operands) > 1]
    size = dict(zip(out, call.shape, strict=True))
    parts = []
    for labels, letters in operands:
        inner = [a for a in labels.axes if letters[a] not in shared]
        if labels.axes and len(inner) == len(labels.axes):
            call.ties.fix(labels, f"{call.told} takes them as positions, and not head by head")
            labels = Labels(labels.shape)
        else:
            labels = call.ties.close(labels, inner, call.why)
        extent = tuple(labels.shape[letters.index(c)] if c in letters else 1 for c in shared)
        parts.append(_ordered(extent, [shared.index(letters[a]) for a in labels.axes], labels))
    met = meet(call, parts, tuple(size[c] for c in shared))
    found = _ordered(call.shape, [out.index(shared[a]) for a in met.axes], met)
    if found.axes:
        call.heads[call.node] = found
    return found


def _ordered(shape: tuple[int, ...], axes: list[int], labels: Labels) -> Labels:
    """The same labels along other axes, which need not come in order."""
    order = sorted(range(len(axes)), key=axes.__getitem__)
    return Labels(shape, tuple(axes[p] for p in order), labels.ids.transpose(order)) if axes else Labels(shape)


def _operand(call: Call, place: int) -> Labels | None:
    source = call.node.args[place] if len(call.node.args) > place else None
    labels = call.known.get(source) if isinstance(source, fx.Node) else None
    return labels if isinstance(labels, Labels) else None


def _stacked(dims: int, *last: str) -> Letters:
    """Letters for a stack of matrices: the axes before the last two are counted from the end."""
    return (*(f"b{n}" for n in range(dims - 2, 0, -1)), *last)
