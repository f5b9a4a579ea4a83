"""Names, dtypes and shapes of what a network takes and gives, found by running it at two batch sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def flatten(value: Any) -> tuple[list[Tensor], list[str] | None]:
    """The tensors that a network returned, in order, and their names where it returned a dict.

    Raises TypeError for anything but a tensor, or tuples, lists and one dict of tensors.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return [value], None
    if isinstance(value, Mapping):
        if not all(isinstance(v, torch.Tensor) for v in value.values()):
            raise TypeError("a network that returns a dict must hold tensors alone in it")
        return list(value.values()), [str(k) for k in value]
    if isinstance(value, tuple | list):
        return [t for v in value for t in flatten(v)[0]], None
    raise TypeError(f"a network must return tensors, this one returned a {type(value).__name__}")


def tensor(name: str, value: Tensor, dynamic: Sequence[int]) -> dict[str, Any]:
    """One tensor of a signature; dynamic: its axes of any size."""
    shape = [-1 if axis in dynamic else int(size) for axis, size in enumerate(value.shape)]
    axis = 0 if shape[:1] == [-1] else None
    return {"name": name, "dtype": str(value.dtype).removeprefix("torch."), "shape": shape, "batch_axis": axis}


def outputs(first: Any, second: Any) -> list[dict[str, Any]]:
    """The outputs of a signature. first, second: what one network returned for two sizes of its dynamic axes.

    Raises ValueError where the two differ in more than sizes.
    """
    (one, keys), (two, _) = flatten(first), flatten(second)
    if [(t.dtype, t.ndim) for t in one] != [(t.dtype, t.ndim) for t in two]:
        raise ValueError("the network returns other tensors for another batch size")
    found = []
    for place, (a, b) in enumerate(zip(one, two, strict=True)):
        dynamic = [axis for axis, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if m != n]
        name = keys[place] if keys else f"output_{place}" if place else "output"
        if keys is None and len(one) == 1 and a.ndim == 2 and a.is_floating_point() and a.shape[1] > 1:
            name = "logits"
        found.append(tensor(name, a, dynamic))
    return found
