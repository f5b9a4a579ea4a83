"""Palettes: the weights of a layer take only a few values, by k-means; found, trained, and written packed.

Han, Mao and Dally (2016, Deep Compression) train the values of a palette by the gradients of all weights that share
them: here by their mean, which is the step that plain training would take, projected onto the palette, at the same
learning rate. The clusters are one-dimensional, so k-means is solved nearly exactly (Wang and Song 2011).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils import parametrize

from workers.nn.sites import weight_of

Vector = npt.NDArray[np.float64]
BINS, ROUNDS = 256, 60


@dataclass(frozen=True)
class Palette:
    """values: ascending. index: uint8, in the shape of the weights. zero: which of the values is pinned at zero."""

    values: torch.Tensor
    index: torch.Tensor
    zero: int | None = None

    def weights(self) -> torch.Tensor:
        return self.values[self.index.long()]


def k_means(values: Vector, k: int) -> Vector:
    """The k centres (fewer where there are fewer values), ascending: optimal over up to 512 bins of the sorted values
    by dynamic programming, then improved on the values themselves until nothing moves."""
    ordered = np.sort(values)
    unique = np.unique(ordered)
    if len(unique) <= k:
        return unique
    centres = _optimal(ordered, unique, k)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    for _ in range(ROUNDS):
        cuts = np.concatenate([[0], np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2), [len(ordered)]])
        counts = np.diff(cuts)
        new = np.where(counts > 0, np.diff(sums[cuts]) / np.maximum(counts, 1), centres)
        if np.allclose(new, centres, rtol=1e-7, atol=0):
            break
        centres = np.sort(new)
    return centres


def palette(weight: torch.Tensor, k: int, *, keep_zeros: bool = False) -> Palette:
    """The palette of a weight: at most k values. keep_zeros: exact zeros stay zero, and zero is one of the values."""
    flat = np.asarray(weight.detach().double().cpu().reshape(-1))
    zero: int | None = None
    if keep_zeros and (flat == 0).any():
        centres = k_means(flat[flat != 0], k - 1) if (flat != 0).any() else np.zeros(0)
        centres = np.sort(np.append(centres[centres != 0], 0.0))
        zero = int(np.flatnonzero(centres == 0)[0])
    else:
        centres = k_means(flat, k)
    index = np.searchsorted((centres[1:] + centres[:-1]) / 2, flat)
    if zero is not None:
        index[flat == 0] = zero
    values = torch.from_numpy(centres).to(weight.dtype)
    return Palette(values, torch.from_numpy(index.astype(np.uint8)).reshape(weight.shape), zero)


class _Look(torch.autograd.Function):
    """values[index], with a gradient by counting: torch's own would add up the weights one by one."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.dtype, ctx.n = values.dtype, len(values)
        return values[index]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (index,) = ctx.saved_tensors
        flat = index.reshape(-1)
        found = torch.bincount(flat, gradient.reshape(-1).float(), minlength=ctx.n)
        return (found / torch.bincount(flat, minlength=ctx.n).clamp_min(1)).to(ctx.dtype), None


class _FromPalette(nn.Module):
    """A parametrization: the trained values are the palette, the weights are looked up in it."""

    def __init__(self, found: Palette) -> None:
        super().__init__()
        self.register_buffer("index", found.index.long())
        pinned = torch.ones_like(found.values)
        if found.zero is not None:
            pinned[found.zero] = 0
        self.register_buffer("free", pinned)
        self._values = found.values

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        index, free = self.index, self.free
        assert isinstance(index, torch.Tensor)
        assert isinstance(free, torch.Tensor)
        looked: torch.Tensor = _Look.apply(values * free, index)  # type: ignore[no-untyped-call]
        return looked

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return self._values.to(weight.device).clone()


@contextmanager
def trained_as(module: nn.Module, palettes: Mapping[str, Palette]) -> Iterator[None]:
    """Inside, the palettes are what is trained; after it the layers have plain weights again, of the new values.
    What shares its weights with such a layer shares its palette."""
    tied = {name: list(_holders(module, weight_of(module.get_submodule(name)))) for name in palettes}
    for name, found in palettes.items():
        for holder, tensor in tied[name]:  # one parameter for all of them: each finds it as the palette and keeps it
            parametrize.register_parametrization(holder, tensor, _FromPalette(found), unsafe=True)
    try:
        yield
    finally:
        for holders in tied.values():
            for place, (holder, tensor) in enumerate(holders):  # the first makes weights of the one parameter
                parametrize.remove_parametrizations(holder, tensor, leave_parametrized=place == 0)


def _holders(module: nn.Module, weight: torch.Tensor) -> Iterator[tuple[nn.Module, str]]:
    """Every module that has this very parameter, and its name there."""
    for holder in module.modules():
        yield from ((holder, name) for name, parameter in holder.named_parameters(recurse=False) if parameter is weight)


def bits(n: int) -> int:
    """Of one index into a palette of n values."""
    return max(1, ceil(log2(n)))


def packed_bytes(n: int, values: int) -> int:
    """What n weights of a palette take before the file is deflated."""
    return ceil(n * bits(values) / 8) + 4 * values


def write(path: Path, module: nn.Module, names: list[str]) -> int:
    """Writes the network's numbers as a deflated .npz: palettes and packed indices for these layers, the rest as it is.
    Returns the bytes on disk."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    weights = {f"{name}.weight" for name in names}
    for name, tensor in module.state_dict().items():
        array = np.asarray(tensor.detach().cpu().float() if tensor.dtype == torch.bfloat16 else tensor.detach().cpu())
        if name in weights:
            values, index = np.unique(array, return_inverse=True)
            width = bits(len(values))
            each = np.unpackbits(index.reshape(-1, 1).astype(np.uint8), axis=1)[:, 8 - width :]
            arrays[f"{name}.palette"], arrays[f"{name}.index"] = values, np.packbits(each)
            arrays[f"{name}.shape"], arrays[f"{name}.bits"] = np.asarray(array.shape), np.asarray(width)
        else:
            arrays[name] = array
    np.savez_compressed(path, allow_pickle=False, **arrays)
    return path.stat().st_size


def read(path: Path) -> dict[str, torch.Tensor]:
    """The state that `write` wrote."""
    found: dict[str, torch.Tensor] = {}
    with np.load(path) as stored:
        for name in stored.files:
            stem, _, part = name.rpartition(".")
            if part == "palette" and f"{stem}.index" in stored.files:
                values, shape = stored[name], tuple(stored[f"{stem}.shape"])
                n, width = int(np.prod(shape)), bits(len(values))
                each = np.unpackbits(stored[f"{stem}.index"])[: n * width].reshape(n, width)
                index = np.packbits(np.pad(each, ((0, 0), (8 - width, 0))), axis=1)[:, 0]
                found[stem] = torch.from_numpy(values[index].reshape(shape))
            elif not (part in ("index", "shape", "bits") and f"{stem}.palette" in stored.files):
                found[name] = torch.from_numpy(stored[name])
    return found


def distinct(layer: nn.Module) -> int:
    """How many different weights a layer has."""
    return len(torch.unique(weight_of(layer).detach()))


def _optimal(ordered: Vector, unique: Vector, k: int) -> Vector:
    """Centres of the least squared error over bins: of equal count and of equal width, so that tails get some too."""
    if len(unique) <= 2 * BINS:
        edges = unique
    else:
        edges = np.union1d(np.quantile(ordered, np.linspace(0, 1, BINS)), np.linspace(ordered[0], ordered[-1], BINS))
    cuts = np.unique(np.append(np.searchsorted(ordered, edges), len(ordered)))
    n = cuts.astype(np.float64)
    s = np.concatenate([[0.0], np.cumsum(ordered)])[cuts]
    q = np.concatenate([[0.0], np.cumsum(ordered**2)])[cuts]
    count = n[None, :] - n[:, None]  # cost[i, j]: of one cluster of the bins from i up to j
    total = s[None, :] - s[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = (q[None, :] - q[:, None]) - np.where(count > 0, total**2 / count, 0.0)
    cost[count <= 0] = np.inf
    k = min(k, len(cuts) - 1)
    best, back = cost[0], []
    for _ in range(k - 1):
        tried = best[:, None] + cost
        back.append(tried.argmin(axis=0))
        best = tried.min(axis=0)
    ends, end = [len(cuts) - 1], len(cuts) - 1
    for step in reversed(back):
        end = int(step[end])
        ends.append(end)
    bounds = cuts[np.asarray([0, *ends[::-1]])]
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    return np.asarray((sums[bounds[1:]] - sums[bounds[:-1]]) / np.diff(bounds))
