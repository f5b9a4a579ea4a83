"""Which layers mind: accuracy on validation rows against the amount pruned, one layer at a time, without training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from app.domain.specs import PruneSpec
from workers.context import Context
from workers.net import Net, prunable
from workers.nn.channels import thin
from workers.nn.cuts import group_sizes, share_of
from workers.nn.data import Data, Rows
from workers.nn.macs import macs
from workers.nn.predict import eager, sensible_batch
from workers.nn.quality import Answers, answers, paired
from workers.nn.weights_pruning import fits_n_m, weight_of, zero

AMOUNTS = (0.25, 0.5, 0.75, 0.9)
MOST_ROWS, FEWEST_ROWS = 1000, 100
MOST_MACS = {"cpu": 1e12, "cuda": 5e13}  # what it may cost: a large network is looked at on fewer rows
MOST_S = 60.0  # of the processors' time, so that it sees the same on a busy machine
HURTS = -0.01  # a layer minds when the whole interval of its loss lies beyond one point
DRAWN = 12  # curves in the figure
Saliency = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Part:
    """Layers that can only be pruned together, and a way to have them pruned: at(amount) gives the network; None: it
    cannot be, or nothing goes. undo puts it back."""

    layers: list[str]
    at: Callable[[float], nn.Module | None]
    undo: Callable[[], None]


@dataclass
class _Row:
    """also: what goes together with it. values: by amount. change: at the amount asked for."""

    also: list[str]
    values: list[float | None]
    change: dict[str, float] | None = None


def sensitivity(net: Net, spec: PruneSpec, data: Data, ctx: Context, saliency: Saliency | None) -> dict[str, Any]:
    """A table of the quality on validation rows: `layers` → {with, values, change}, where values go with `amounts` and
    change is the paired difference at the amount that the job asks for, with its interval; which layers mind
    (`leave_alone`), and a figure. Li et al. 2017, "Pruning filters for efficient ConvNets", figure 2.

    Channels are really taken out, weights set to zero; batch norm keeps its statistics. Leaves `net` as it was.
    """
    asked = share_of(spec)
    amounts = [asked] if spec.method == "n_m" else sorted({*AMOUNTS, asked})
    parts = list(_channels(net, spec, saliency) if spec.method == "channel" else _weights(net, spec, saliency))
    rows = _rows(net, data, ctx, len(parts) * len(amounts))
    ask = _asking(rows, ctx)
    whole, ends = ask(net.module), time.process_time() + MOST_S * max(1, torch.get_num_threads())
    table = {p.layers[0]: _Row(p.layers[1:], [None] * len(amounts)) for p in parts}
    looks = [(part, amount) for amount in sorted(amounts, key=lambda a: a != asked) for part in parts]
    unseen = set()
    for done, (part, amount) in enumerate(looks):
        ctx.progress(done, len(looks), "looks", "measuring sensitivity")
        if time.process_time() > ends:
            unseen.add(part.layers[0])
            continue
        row, module = table[part.layers[0]], part.at(amount)
        if module is not None:
            answered = ask(module)
            row.values[amounts.index(amount)] = answered.value()
            if amount == asked:
                full = paired(answered, whole)
                row.change = {k: full[k] for k in ("difference", "low", "high")}
        part.undo()
    net.module.cpu()
    minds = [n for n, row in table.items() if row.change and row.change["high"] < HURTS]
    return {
        "split": "val",
        "rows": len(rows),
        "name": whole.name,
        "whole": whole.value(),
        "amounts": amounts,
        "layers": {n: {"with": row.also, "values": row.values, "change": row.change} for n, row in table.items()},
        "leave_alone": [name for first in minds for name in (first, *table[first].also)],
        "not_measured": sorted(unseen),
        "suggestion": _suggestion(table, minds, asked, whole.name, len(rows)),
    }


def figure(found: dict[str, Any]) -> dict[str, Any]:
    """The curves of the layers that lose most."""
    amounts, table = found["amounts"], found["layers"]
    order = sorted(table, key=lambda n: min((v for v in table[n]["values"] if v is not None), default=1.0))
    series = []
    for name in order[:DRAWN]:
        points = [(a, v) for a, v in zip(amounts, table[name]["values"], strict=True) if v is not None]
        together = len(table[name]["with"])
        series.append(
            {
                "name": name + (f" and {together} more" if together else ""),
                "x": [0.0, *(a for a, _ in points)],
                "y": [found["whole"], *(v for _, v in points)],
                "line": True,
            }
        )
    more = f"; the {DRAWN} that lose most of {len(order)}" if len(order) > DRAWN else ""
    return {
        "title": "Sensitivity of each layer",
        "kind": "lines",
        "x": {"label": "share that is gone of this layer alone"},
        "y": {"label": f"{found['name']} on validation rows"},
        "series": series,
        "note": f"{found['rows']} validation rows, no training{more}",
    }


def _suggestion(table: dict[str, _Row], minds: list[str], asked: float, name: str, rows: int) -> str:
    losses = {n: row.change["difference"] for n, row in table.items() if row.change}
    if not losses:
        return "No layer could be looked at."
    if not minds:
        return f"No layer alone loses more than a point at {asked:g}, as far as {rows} rows can tell."
    worst = sorted(minds, key=lambda n: losses[n])
    told = ", ".join(f"{n} ({100 * losses[n]:+.1f})" for n in worst[:10])
    points = f"Alone and untrained, at {asked:g}, these lose more than a point of {name}: {told}."
    if len(minds) == len(losses):
        return f"{points} That is every layer: take a smaller amount, or more steps."
    return f"{points} Leave them out of `layers`."


def _rows(net: Net, data: Data, ctx: Context, looks: int) -> Rows:
    cost = (macs(net.module, net.example(batch=1)) or 0) * max(1, looks)
    most = MOST_MACS.get(ctx.device, 1e12) // max(1, cost)
    return data.val.sample(int(max(FEWEST_ROWS, min(MOST_ROWS, most))), ctx.seed)


def _asking(rows: Rows, ctx: Context) -> Callable[[nn.Module], Answers]:
    batch = sensible_batch(rows.x.shape[1:], 250)

    def ask(module: nn.Module) -> Answers:
        return answers(eager(module, ctx.device), rows, batch)

    return ask


def _channels(net: Net, spec: PruneSpec, saliency: Saliency | None) -> Iterator[Part]:
    example = net.example()
    order = list(prunable(net.module))
    for names in _together([*group_sizes(net, spec.layers)]):

        def at(amount: float, names: frozenset[str] = names) -> nn.Module | None:
            net.module.cpu()
            how: dict[str, Any] = {"importance": spec.importance, "round_to": spec.round_to, "seed": spec.seed}
            found = thin(net.module, example, amount, layers=names, saliency=saliency, **how)
            return found.module if found.removed else None

        places = {name: place for place, name in enumerate(order)}
        yield Part(sorted(names, key=lambda n: places.get(n, len(order))), at, lambda: None)


def _together(groups: list[frozenset[str]]) -> list[frozenset[str]]:
    """Groups that have a layer in common are one: to prune one of them is to name the layers of all."""
    found: list[frozenset[str]] = []
    for group in groups:
        meets = [other for other in found if other & group]
        found = [other for other in found if other not in meets] + [group.union(*meets)]
    return found


def _weights(net: Net, spec: PruneSpec, saliency: Saliency | None) -> Iterator[Part]:
    alone, was = spec.model_copy(update={"scope": "layer"}), dict[str, torch.Tensor]()
    for name, layer in prunable(net.module).items():
        if (spec.layers is not None and name not in spec.layers) or (spec.method == "n_m" and fits_n_m(layer, spec.m)):
            continue

        def at(amount: float, name: str = name, layer: nn.Module = layer) -> nn.Module | None:
            net.module.cpu()
            was[name] = weight_of(layer).detach().clone()
            zero(alone, {name: layer}, amount, saliency)
            return net.module

        def undo(name: str = name, layer: nn.Module = layer) -> None:
            with torch.no_grad():
                weight_of(layer).copy_(was.pop(name))

        yield Part([name], at, undo)
