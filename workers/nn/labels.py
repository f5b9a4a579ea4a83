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
    """The labels of one activation. They vary along `axes` alone (in order), where they are `ids`; none: all FIXED.

    Channels that were split, into heads say, vary along several axes until `Ties.settle` has seen the whole graph.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()
    ids: Ids = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def axis(self) -> int | None:
        """Their only axis, or None: what they have when they are settled."""
        return self.axes[0] if len(self.axes) == 1 else None

    def spread(self) -> torch.Tensor:
        """As an int64 tensor of the activation's shape, without using its memory: strides are 0 but along `axes`."""
        if not self.axes:
            return torch.zeros((), dtype=torch.int64).expand(self.shape)
        view = [n if d in self.axes else 1 for d, n in enumerate(self.shape)]
        return torch.from_numpy(np.require(self.ids, requirements=("C", "W"))).view(view).expand(self.shape)

    def along(self, axis: int) -> Ids | None:
        """The labels along an axis; None where they vary along another."""
        if not self.axes:
            return np.full(self.shape[axis], FIXED, np.int64)
        return self.ids if self.axes == (axis,) else None

    def moved(self, shape: tuple[int, ...], axes: Iterable[int]) -> Labels:
        """The same labels on an activation of another shape, along those of its axes."""
        return Labels(shape, tuple(axes), self.ids)


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

    def roots(self, ids: Ids) -> Ids:
        """The root of each of these labels."""
        found = np.fromiter((self.root(i) for i in ids.ravel().tolist()), np.int64, ids.size)
        return found.reshape(ids.shape)

    def tie(self, left: Ids, right: Ids, why: str) -> None:
        """Pairwise: each of the two goes only with the other. What is tied to FIXED stays, because of `why`."""
        left, right = np.broadcast_arrays(left, right)
        pairs = np.stack([left.ravel(), right.ravel()])
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

    def close(self, labels: Labels, axes: Iterable[int], why: str) -> Labels:
        """Nothing may be taken out along these axes: ties the labels along them, and gives those along the others."""
        ids, shut = labels.ids, [labels.axes.index(a) for a in axes if a in labels.axes]
        for place in sorted(shut, reverse=True):
            first = ids.take([0], place)
            self.tie(ids, first, why)
            ids = first.squeeze(place)
        if shut and not ids.ndim:  # all in one: nothing of it can go, and nothing may forget it
            self.fix(ids, why)
        return Labels(labels.shape, tuple(a for p, a in enumerate(labels.axes) if p not in shut), ids)

    def line(self, labels: Labels, axis: int, why: str) -> Ids | None:
        """The labels along one axis, tied along all others; None where they do not vary along it at all."""
        if axis not in labels.axes:
            return labels.along(axis)
        return self.close(labels, [a for a in labels.axes if a != axis], why).ids

    def compact(self, spread: torch.Tensor, why: str) -> Labels:
        """A tensor of labels as Labels. What has no extent any more is fixed, because of `why`."""
        shape = tuple(spread.shape)
        if not spread.numel():
            return Labels(shape)
        for axis in range(spread.dim()):
            if spread.stride(axis) == 0:
                spread = spread.narrow(axis, 0, 1)
        varying = [d for d in range(spread.dim()) if spread.shape[d] > 1 and bool((spread.diff(dim=d) != 0).any())]
        for axis in range(spread.dim()):
            if axis not in varying:
                spread = spread.narrow(axis, 0, 1)
        ids = spread.contiguous().numpy().reshape([shape[d] for d in varying]).copy()
        if not varying:
            self.fix(ids, why)
            return Labels(shape)
        return Labels(shape, tuple(varying), ids)

    def settle(self, labels: Labels, why: str) -> Labels:
        """Labels along one axis, since what goes must be whole slices: tied where they still vary along more."""
        if len(labels.axes) < 2:
            return labels
        roots = self.roots(labels.ids)
        varying = [a for p, a in enumerate(labels.axes) if (roots != roots.take([0], p)).any()]
        if not varying:
            self.fix(labels, why)
        # The longest gives the finest choice.
        axis = max(varying or labels.axes, key=lambda d: (labels.shape[d], d))
        return Labels(labels.shape, (axis,), self.close(labels, [a for a in labels.axes if a != axis], why).ids)


def tensors_in(value: Any) -> Iterable[Labels]:
    """All Labels within nested lists, tuples and dicts."""
    if isinstance(value, Labels):
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from tensors_in(inner)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
