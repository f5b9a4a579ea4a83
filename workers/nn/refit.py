"""The weights that are left, fitted anew: so that a layer's outputs come as near to the original's as they can.

Layer by layer, from what goes in in the network as it has become to what came out in the network as it was (the
asymmetric reconstruction of Zhang et al. 2015, Efficient and Accurate Approximations of Nonlinear Convolutional
Networks): a later layer makes up for what the earlier ones lost. Ridge regression towards the weights as they are.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import conv

from workers.nn.data import Rows
from workers.nn.predict import sensible_batch
from workers.nn.sites import is_transposed, weight_of

MAX_ROWS, MIN_ROWS, MACS = 256, 32, 2e10
BATCHES = 8  # every fourth is held back, to choose the strength of the ridge by
SAMPLES_PER_UNKNOWN, MAX_SAMPLES, MAX_UNKNOWNS = 8, 16_384, 5_000
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)

Samples = Iterator[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Pair:
    """new: the layer whose weights are fitted. old: the one whose outputs it should give, in the network before.
    norm: the batch norm that comes next, if one does: its mean takes up what a bias would."""

    new: str
    old: str
    norm: str | None = None


class _Enough(Exception):
    """What was wanted of a run is there: the rest need not run."""


def rows_for(rows: Rows, macs: int | None, seed: int) -> Rows:
    """As many training rows as a few seconds are enough for: 32 to 256."""
    fitting = int(MACS / max(1, macs or 1))
    return rows.sample(max(MIN_ROWS, min(MAX_ROWS, fitting)), seed)


def refit(
    module: nn.Module,
    before: nn.Module,
    pairs: list[Pair],
    rows: Rows,
    how: Literal["scale", "least_squares"],
    device: str,
    *,
    keep_zeros: bool = False,
    seed: int = 0,
    tell: Callable[[int], None] = lambda done: None,
) -> dict[str, dict[str, Any]]:
    """Fits the layers of `module` in the order given, in place. Both networks take the same rows.

    Returns per layer the squared error of its outputs over their variance, on training rows: {error_before,
    error_after, how}. keep_zeros: weights that are exactly zero stay so. Leaves both networks on `device`.
    """
    module.to(device).eval()
    before.to(device).eval()
    found = {}
    for done, pair in enumerate(pairs):
        layer = module.get_submodule(pair.new)
        linear = _solvable(layer) if how == "least_squares" else False
        norm = module.get_submodule(pair.norm) if pair.norm else None
        step = _least_squares if linear else _scale
        found[pair.new] = step(layer, _batches(module, before, pair, rows, device, seed, linear), keep_zeros, norm)
        tell(done + 1)
    return found


def _solvable(layer: nn.Module) -> bool:
    weight = weight_of(layer)
    return not is_transposed(layer) and weight[0].numel() <= MAX_UNKNOWNS


def _batches(
    module: nn.Module, before: nn.Module, pair: Pair, rows: Rows, device: str, seed: int, linear: bool
) -> Samples:
    """What goes in (samples, groups, unknowns) or, for a scale, what comes out without the bias (samples, out); and
    what should come out (samples, out)."""
    new, old = module.get_submodule(pair.new), before.get_submodule(pair.old)
    unknowns = weight_of(new)[0].numel()
    samples = min(MAX_SAMPLES, max(2048, SAMPLES_PER_UNKNOWN * unknowns))
    size = max(1, min(sensible_batch(rows.x.shape[1:], 128), -(-len(rows) // BATCHES)))
    draw = torch.Generator().manual_seed(seed + zlib.crc32(pair.old.encode()))
    for x, _ in rows.batches(size):
        x = x.to(device)
        wanted = _outputs(old, _reach(before, old, x))
        given = _reach(module, new, x)
        places = wanted.shape[0] * wanted.shape[1]
        share = max(1, samples * len(x) // len(rows))
        some = torch.randperm(places, generator=draw)[:share].to(device) if share < places else None
        wanted = wanted.flatten(0, 1)
        taken = _patches(new, given, some) if linear else _picked(_outputs(new, given, bias=False).flatten(0, 1), some)
        yield taken, _picked(wanted, some)


def _picked(values: torch.Tensor, some: torch.Tensor | None) -> torch.Tensor:
    return values if some is None else values.index_select(0, some)


def _reach(module: nn.Module, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a layer is given when the network runs on x; the rest does not run."""
    caught: list[torch.Tensor] = []

    def catch(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        caught.append(given[0].detach())
        raise _Enough

    handle = layer.register_forward_pre_hook(catch)
    try:
        with torch.no_grad():
            module(x)
    except _Enough:
        pass
    finally:
        handle.remove()
    return caught[0]


def _outputs(layer: nn.Module, given: torch.Tensor, *, bias: bool = True) -> torch.Tensor:
    """(rows, places, channels)."""
    with torch.no_grad():
        found: torch.Tensor = layer(given)
        own = getattr(layer, "bias", None)
        if isinstance(layer, nn.Linear):
            found = found.reshape(len(found), -1, found.shape[-1])
        else:
            found = found.flatten(2).transpose(1, 2)
        return (found if bias or not isinstance(own, torch.Tensor) else found - own).float()


def _patches(layer: nn.Module, x: torch.Tensor, some: torch.Tensor | None) -> torch.Tensor:
    """What every output place is computed from: (samples, groups, unknowns), in the order of the weights."""
    x = x.float()
    if isinstance(layer, nn.Linear):
        return _picked(x.reshape(-1, x.shape[-1]), some)[:, None]
    assert isinstance(layer, conv._ConvNd)
    amounts = list(layer._reversed_padding_repeated_twice)
    if any(amounts):
        x = F.pad(x, amounts, "constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    dims = len(layer.kernel_size)
    for axis in range(dims):
        k, dilation, stride = layer.kernel_size[axis], layer.dilation[axis], layer.stride[axis]
        x = x.unfold(2 + axis, dilation * (k - 1) + 1, stride)[..., ::dilation]
    x = x.permute(0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims))
    sizes = x.shape[: 1 + dims]
    found = x.reshape(sizes.numel(), -1) if some is None else x[torch.unravel_index(some, sizes)].flatten(1)
    return found.reshape(len(found), layer.groups, -1)


@dataclass
class _Moments:
    """Sums over samples, in double precision. x: (groups, unknowns); y: (groups, channels of each)."""

    n: int
    x: torch.Tensor
    y: torch.Tensor
    xx: torch.Tensor
    xy: torch.Tensor
    yy: torch.Tensor

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(*(getattr(self, k) + getattr(other, k) for k in ("n", "x", "y", "xx", "xy", "yy")))

    def centred(self) -> _Moments:
        """About the means, which a bias takes care of."""
        x, y = self.x / self.n, self.y / self.n
        return _Moments(
            self.n, x, y,
            self.xx - self.n * x[:, :, None] * x[:, None, :],
            self.xy - self.n * x[:, :, None] * y[:, None, :],
            self.yy - self.n * y**2,
        )  # fmt: skip

    def residual(self, w: torch.Tensor) -> torch.Tensor:
        """The squared error of every output channel. w: (groups, channels, unknowns)."""
        through = torch.einsum("gou,guv,gov->go", w, self.xx, w)
        return (self.yy - 2 * torch.einsum("gou,guo->go", w, self.xy) + through).clamp_min(0)


def _moments(x: torch.Tensor, y: torch.Tensor) -> _Moments:
    groups = x.shape[1]
    x, y = x.transpose(0, 1), y.reshape(len(y), groups, -1).transpose(0, 1)
    across = x.transpose(1, 2)
    return _Moments(
        x.shape[1], x.sum(1).double(), y.sum(1).double(),
        (across @ x).double(), (across @ y).double(), y.square().sum(1).double(),
    )  # fmt: skip


def _least_squares(layer: nn.Module, samples: Samples, keep_zeros: bool, norm: nn.Module | None) -> dict[str, Any]:
    bias = getattr(layer, "bias", None)
    weight = weight_of(layer)
    sums: dict[bool, _Moments] = {}
    for place, (x, y) in enumerate(samples):
        part = _moments(x, y)
        held = place % 4 == 3
        sums[held] = sums[held] + part if held in sums else part
    learn, held_back = sums[False], sums.get(True)
    look = every = learn
    if held_back is not None:
        look, every = held_back, learn + held_back
    if isinstance(bias, torch.Tensor) or norm is not None:
        # A bias of y - w·x, or a batch norm's mean, makes all of these errors about the means.
        every, look, learn = every.centred(), look.centred(), learn.centred()
    w = weight.detach().double().reshape(every.xx.shape[0], -1, every.xx.shape[1])
    zero = (w == 0) if keep_zeros and bool((w == 0).any()) else None
    best, error = w, look.residual(w)
    final = w
    for ridge in RIDGES if held_back is not None else RIDGES[-1:]:
        tried = _solved(learn, w, ridge, zero)
        now = look.residual(tried)
        better = (now < error)[..., None]
        if bool(better.any()):
            best, final = torch.where(better, tried, best), torch.where(better, _solved(every, w, ridge, zero), final)
            error = torch.minimum(now, error)
    total = float(every.yy.sum()) or 1.0
    found = {
        "error_before": float(every.residual(w).sum()) / total,
        "error_after": float(every.residual(final).sum()) / total,
        "how": "least_squares",
    }
    with torch.no_grad():
        weight.copy_(final.reshape(weight.shape))
    _take_up(bias, norm, every.y.reshape(-1), torch.einsum("gou,gu->go", final, every.x).reshape(-1))
    return found


def _solved(moments: _Moments, w: torch.Tensor, ridge: float, zero: torch.Tensor | None) -> torch.Tensor:
    """The weights of least error plus ridge times the squared distance from w."""
    size = moments.xx.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    lhs = moments.xx + torch.diag_embed((ridge * size)[:, None].expand(-1, moments.xx.shape[1]))
    rhs = moments.xy - moments.xx @ w.transpose(1, 2)
    if zero is None:
        step: torch.Tensor = torch.linalg.solve(lhs, rhs)
        return w + step.transpose(1, 2)
    found = w.clone()
    for g in range(w.shape[0]):
        for o in range(w.shape[1]):  # what was pruned stays pruned: each channel has its own unknowns
            free = torch.nonzero(~zero[g, o])[:, 0]
            if len(free):
                found[g, o, free] += torch.linalg.solve(lhs[g][free][:, free], rhs[g, free, o])
    return found


def _scale(layer: nn.Module, samples: Samples, keep_zeros: bool, norm: nn.Module | None) -> dict[str, Any]:
    bias = getattr(layer, "bias", None)
    batches = list(samples)
    z, y = (torch.cat([b[side] for b in batches]).double() for side in (0, 1))
    mean_z, mean_y = (z.mean(0), y.mean(0)) if isinstance(bias, torch.Tensor) or norm is not None else (0, 0)
    z, y = z - mean_z, y - mean_y
    power = z.square().sum(0)
    factor = torch.where(power > 0, (z * y).sum(0) / power.clamp_min(1e-300), torch.ones_like(power))
    total = float(y.square().sum()) or 1.0
    found = {
        "error_before": float((y - z).square().sum()) / total,
        "error_after": float((y - factor * z).square().sum()) / total,
        "how": "scale",
    }
    stretch(layer, factor)
    _take_up(bias, norm, torch.as_tensor(mean_y), torch.as_tensor(factor * mean_z))
    return found


def _take_up(bias: Any, norm: nn.Module | None, wanted: torch.Tensor, given: torch.Tensor) -> None:
    """Means of outputs: those wanted, bias and all, and those that the weights alone give now."""
    with torch.no_grad():
        if isinstance(bias, torch.Tensor):
            bias.copy_(wanted - given)
        elif norm is not None:
            assert isinstance(norm.running_mean, torch.Tensor)
            norm.running_mean.add_((given - wanted).to(norm.running_mean))


def stretch(layer: nn.Module, factor: torch.Tensor) -> None:
    """Multiplies the weights of every output channel, but not its bias."""
    weight = weight_of(layer)
    with torch.no_grad():
        if is_transposed(layer):  # (in, out ÷ groups, …)
            groups = int(layer.groups)  # type: ignore[arg-type]
            blocks = weight.view(groups, -1, *weight.shape[1:])
            blocks.mul_(factor.to(weight).view(groups, 1, -1, *[1] * (weight.dim() - 2)))
        else:
            weight.mul_(factor.to(weight).view(-1, *[1] * (weight.dim() - 1)))
