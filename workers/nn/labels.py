"""Labels for channels: every channel of every activation gets a number, and numbers that must go together are tied."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Ids = npt.NDArray[np.int64]
FIXED = 0  # the label of what no layer produced: inputs, constants, parameters used as they are


@dataclass(frozen=True)
class Labels:
    """The labels of one activation. They vary along `axis` alone, where they are `ids`; axis None: all FIXED."""

    shape: tuple[int, ...]
    axis: int | None = None
    ids: Ids = field(default_factory=lambda: np.zeros(0, np.int64))

    def spread(self) -> torch.Tensor:
        """As an int64 tensor of the activation's shape, without using its memory: strides are 0 but along `axis`."""
        if self.axis is None:
            return torch.zeros((), dtype=torch.int64).expand(self.shape)
        view = [1] * len(self.shape)
        view[self.axis] = -1
        return torch.from_numpy(self.ids).view(view).expand(self.shape)

    def along(self, axis: int) -> Ids | None:
        """The labels along an axis; None where they vary along another."""
        if self.axis is None:
            return np.full(self.shape[axis], FIXED, np.int64)
        return self.ids if self.axis == axis else None


class Ties:
    """Which labels go together (a union-find), and which may not go at all, with the reason."""

    def __init__(self) -> None:
        self._parent = [FIXED]
        self._fixed: list[tuple[int, str]] = []

    def fresh(self, n: int) -> Ids:
        """n new labels."""
        start = len(self._parent)
        self._parent.extend(range(start, start + n))
        return np.arange(start, start + n, dtype=np.int64)

    def root(self, label: int) -> int:
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def tie(self, left: Ids | torch.Tensor, right: Ids | torch.Tensor, why: str) -> None:
        """Pairwise: each of the two goes only with the other. What is tied to FIXED stays, because of `why`."""
        pairs = np.stack([np.asarray(left).ravel(), np.asarray(right).ravel()])
        for a, b in np.unique(pairs[:, pairs[0] != pairs[1]], axis=1).T.tolist():
            if FIXED in (a, b):
                self._fixed.append((a or b, why))
            else:
                low, high = sorted((self.root(a), self.root(b)))
                self._parent[high] = low

    def fix(self, labels: Labels | Ids, why: str) -> None:
        """None of these may go."""
        ids = labels.ids if isinstance(labels, Labels) else labels
        self._fixed += [(i, why) for i in np.unique(ids).tolist() if i != FIXED]

    def reasons(self) -> dict[int, str]:
        """root → why it may not go, for all that may not."""
        found: dict[int, str] = {}
        for label, why in self._fixed:
            found.setdefault(self.root(label), why)
        return found

    def compact(self, spread: torch.Tensor, why: str) -> Labels:
        """A tensor of labels as Labels. Where they vary along several axes, channels are tied until they do not."""
        shape = tuple(spread.shape)
        varying = [d for d in range(spread.dim()) if _varies(spread, d)]
        if not varying:
            if spread.numel():
                self.fix(_line(spread, 0) if shape else np.asarray(spread).reshape(1), why)
            return Labels(shape)
        # What goes must be whole slices along one axis, and the longest gives the finest choice.
        axis = max(varying, key=lambda d: (shape[d], d))
        ids = _line(spread, axis)
        if len(varying) > 1:
            view = [1] * len(shape)
            view[axis] = -1
            self.tie(spread, torch.from_numpy(ids).view(view).expand(shape), why)
        return Labels(shape, axis, ids)


def tensors_in(value: Any) -> Iterable[Labels]:
    """All Labels within nested lists, tuples and dicts."""
    if isinstance(value, Labels):
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from tensors_in(inner)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def _varies(spread: torch.Tensor, axis: int) -> bool:
    if spread.shape[axis] < 2 or spread.stride(axis) == 0 or not spread.numel():
        return False
    return bool((spread != spread.narrow(axis, 0, 1)).any())


def _line(spread: torch.Tensor, axis: int) -> Ids:
    for d in reversed(range(spread.dim())):
        if d != axis:
            spread = spread.select(d, 0)
    return spread.contiguous().numpy().copy()
