"""One layer as several thinner ones: low-rank factors of linear layers and convolutions, depthwise-separable forms.

Linear layers and 1×1 convolutions by their singular values; other convolutions by Tucker-2 (Kim et al. 2016,
Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications). Depthwise-separable: the
best rank-1 approximation of every input channel's kernels (Guo et al. 2018, Network Decoupling).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.modules import conv

from workers.nn import ranks
from workers.nn.sites import Site, is_transposed, weight_of

Parts = dict[str, nn.Module]
_CONVS = {False: (nn.Conv1d, nn.Conv2d, nn.Conv3d), True: (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)}


@dataclass(frozen=True)
class Plan:
    """rank: (of what goes in, of what comes out); equal where one factorization serves both. macs: before and after,
    of one call. noise: VBMF took everything for noise, and rank 1 is what is left."""

    rank: tuple[int, int]
    of: tuple[int, int]
    macs: tuple[int, int]
    weights: tuple[int, int]
    noise: bool = False

    @property
    def pays(self) -> bool:
        return self.macs[1] < self.macs[0] and self.weights[1] < self.weights[0]


def plan(site: Site, how: Literal["energy", "vbmf"], energy: float) -> Plan:
    """The ranks that a layer's weights ask for, and what they would cost. Cheap: nothing is factored."""
    kernel = _kernel(site.layer)
    out, taken = kernel.shape[:2]
    before = weight_of(site.layer).numel()
    if kernel[0, 0].size == 1:
        rank, noise = _rank(kernel.reshape(out, taken), how, energy)
        places = site.positions[0 if is_transposed(site.layer) else 1]
        return Plan((rank, rank), (taken, out), (site.macs, rank * (taken + out) * places),
                    (before, rank * (taken + out)), noise)  # fmt: skip
    rank_out, noise = _rank(kernel.reshape(out, -1), how, energy)
    rank_in, noise_in = _rank(np.moveaxis(kernel, 1, 0).reshape(taken, -1), how, energy)
    size = kernel[0, 0].size
    rank_out, rank_in = min(rank_out, rank_in * size), min(rank_in, rank_out * size)
    core = rank_out * rank_in * size
    enters, leaves = site.positions
    after = (
        taken * rank_in * enters + core * (enters if is_transposed(site.layer) else leaves) + rank_out * out * leaves
    )
    weights = taken * rank_in + core + rank_out * out
    return Plan((rank_in, rank_out), (taken, out), (site.macs, after), (before, weights), noise or noise_in)


def low_rank(layer: nn.Module, rank: tuple[int, int], *, empty: bool = False) -> tuple[Parts, float | None]:
    """The factors of a plan's ranks, and the share of the weights' norm that they keep. empty: of the right shapes
    alone, for a look at what they would cost; what they would keep is not known then."""
    kernel = _kernel(layer)
    out, taken = kernel.shape[:2]
    parts = _shells(layer, rank, kernel[0, 0].size == 1)
    if empty:
        return parts, None
    total = max(float(np.linalg.norm(kernel)), 1e-300)
    if kernel[0, 0].size == 1:
        left, values, right = np.linalg.svd(kernel.reshape(out, taken), full_matrices=False)
        root = np.sqrt(values[: rank[0]])
        found = {"down": root[:, None] * right[: rank[0]], "up": left[:, : rank[0]] * root}
        kept = float(np.sqrt((values[: rank[0]] ** 2).sum())) / total
    else:
        core, (to_out, to_in) = _tucker(kernel, (rank[1], rank[0]))
        found = {"down": to_in.T, "core": core, "up": to_out}
        kept = float(np.linalg.norm(core)) / total  # the factors are orthogonal
    for name, values in found.items():
        _fill(parts[name], values)
    _set_bias(parts["up"], layer)
    return parts, min(1.0, kept)


def separable(layer: nn.Module) -> tuple[Parts, float]:
    """A dense convolution as depthwise and pointwise ones, and the share of the weights' norm that they keep."""
    assert isinstance(layer, conv._ConvNd)
    kind: Any = type(layer)
    bias = layer.bias is not None
    deep: Any = kind(layer.in_channels, layer.in_channels, layer.kernel_size, layer.stride, layer.padding,
                     layer.dilation, groups=layer.in_channels, bias=False, padding_mode=layer.padding_mode)  # fmt: skip
    point: Any = kind(layer.in_channels, layer.out_channels, 1, bias=bias)
    parts: Parts = {"depthwise": deep.to(layer.weight), "pointwise": point.to(layer.weight)}
    kernels = layer.weight.detach().double().flatten(2).transpose(0, 1)  # (in, out, positions)
    # The leading right singular vector, from the small Gram matrix of every input channel.
    _, vectors = torch.linalg.eigh(kernels.transpose(1, 2) @ kernels)
    shape = vectors[..., -1]
    load = (kernels @ shape[..., None])[..., 0]
    size = load.norm(dim=1).clamp_min(1e-300).sqrt()
    _fill(deep, np.asarray((shape * size[:, None]).cpu()))
    _fill(point, np.asarray((load / size[:, None]).T.cpu()))
    _set_bias(point, layer)
    return parts, float(load.norm() / kernels.norm().clamp_min(1e-300))


def separable_cost(site: Site) -> Plan:
    """What the depthwise-separable form would cost."""
    layer = site.layer
    assert isinstance(layer, conv._ConvNd)
    taken, out, size = layer.in_channels, layer.out_channels, prod(layer.kernel_size)
    weights = taken * size + taken * out
    return Plan((1, 1), (taken, out), (site.macs, weights * site.positions[1]), (layer.weight.numel(), weights))


def _rank(matrix: npt.NDArray[np.float64], how: str, energy: float) -> tuple[int, bool]:
    values = ranks.singular_values(matrix)
    if how == "energy":
        return ranks.by_energy(values, energy), False
    rank = ranks.by_vbmf(values, *matrix.shape)
    return max(1, rank), rank == 0


def _kernel(layer: nn.Module) -> npt.NDArray[np.float64]:
    """The weights as (out, in, positions …), in double precision."""
    weight = weight_of(layer).detach().double().cpu()
    if weight.dim() == 2:
        weight = weight[..., None]
    return np.asarray(weight.transpose(0, 1) if is_transposed(layer) else weight)


def _tucker(kernel: npt.NDArray[np.float64], rank: tuple[int, int]) -> tuple[Any, Any]:
    from tensorly.decomposition import partial_tucker

    (core, factors), _ = partial_tucker(kernel, rank=list(rank), modes=[0, 1], n_iter_max=20, tol=1e-4, init="svd")
    return core, factors


def _shells(layer: nn.Module, rank: tuple[int, int], pointwise: bool) -> Parts:
    weight, bias = weight_of(layer), getattr(layer, "bias", None) is not None
    if isinstance(layer, nn.Linear):
        linear: Parts = {
            "down": nn.Linear(layer.in_features, rank[0], bias=False),
            "up": nn.Linear(rank[1], layer.out_features, bias=bias),
        }
        return {name: part.to(weight) for name, part in linear.items()}
    assert isinstance(layer, conv._ConvNd)
    transposed, dims = is_transposed(layer), len(layer.kernel_size) - 1
    plain: Any = _CONVS[False][dims]
    kind: Any = _CONVS[transposed][dims]
    taken, out, size = layer.in_channels, layer.out_channels, layer.kernel_size
    place: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    place |= {"output_padding": layer.output_padding} if transposed else {"padding_mode": layer.padding_mode}
    # Whatever pads does so before a bias is added: only the last of them has one.
    made: list[tuple[str, Any]]
    if not pointwise:
        made = [
            ("down", plain(taken, rank[0], 1, bias=False)),
            ("core", kind(rank[0], rank[1], size, bias=False, **place)),
            ("up", plain(rank[1], out, 1, bias=bias)),
        ]
    elif transposed:
        made = [("down", plain(taken, rank[0], 1, bias=False)), ("up", kind(rank[1], out, size, bias=bias, **place))]
    else:
        made = [("down", kind(taken, rank[0], size, bias=False, **place)), ("up", plain(rank[1], out, 1, bias=bias))]
    return {name: part.to(weight) for name, part in made}


def _fill(layer: nn.Module, values: npt.NDArray[np.float64]) -> None:
    weight = weight_of(layer)
    found = torch.from_numpy(np.ascontiguousarray(values))
    if is_transposed(layer):
        found = found.transpose(0, 1)
    with torch.no_grad():
        weight.copy_(found.reshape(weight.shape))


def _set_bias(to: nn.Module, layer: nn.Module) -> None:
    bias = getattr(layer, "bias", None)
    if isinstance(bias, torch.Tensor):
        assert isinstance(to.bias, torch.Tensor)
        with torch.no_grad():
            to.bias.copy_(bias)
