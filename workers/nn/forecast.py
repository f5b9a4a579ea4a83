"""What a dry run foretells: how large a network is, and how long a training of it would take here."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from app.domain.specs import Training
from workers.context import Context
from workers.net import Net, parameters
from workers.nn.data import Data
from workers.nn.device import autocast, bf16, cuda_devices, layout
from workers.nn.loss import loss_for
from workers.nn.macs import macs
from workers.nn.measure import between_steps
from workers.nn.predict import first
from workers.nn.schedule import optimizer_for

SECONDS, STEPS = 1.0, 20  # a forecast stops measuring after this many, whichever comes first
WAITED_S = 5.0  # and once it has waited so long for others' measurements: a rougher figure is better than a late one


def size(net: Net) -> dict[str, int | None]:
    """parameters, and multiply-adds of one row."""
    return {"parameters": parameters(net.module), "macs": macs(net.module, net.example(batch=1))}


def training(net: Net, data: Data, plan: Training, ctx: Context, *, taught: bool = True) -> float:
    """Seconds that `fit` would take for all epochs of the plan, from a second or so of steps on a copy of the network.

    data: as `fit` takes it. taught: as a fine-tuning, with a teacher that costs what this network costs. Batches that
    alone would take longer are measured with fewer rows, and the figure scaled. The host's measurements are waited for,
    and not counted. Raises Unprocessable where the network cannot learn from these data.
    """
    batch, n = min(plan.batch_size, len(data.train)), len(data.train)
    with torch.random.fork_rng(cuda_devices()), between_steps() as turn:
        step, look = _steps(net, data, plan, ctx)
        learning = _seconds_a_row(step, batch, ctx, turn)
        looking = _seconds_a_row(look, batch, ctx, turn)
    asked = 0 if not taught or plan.alpha == 0 else n * (1 if plan.augment == "none" else plan.epochs)
    return plan.epochs * (n * learning + len(data.val) * looking) + asked * looking


def _steps(net: Net, data: Data, plan: Training, ctx: Context) -> tuple[Callable[[int], None], Callable[[int], None]]:
    """A step of training, and a look without one, at so many rows."""
    module = copy.deepcopy(net.module).to(ctx.device)
    format = layout(module, data, ctx.device)
    module.to(memory_format=format)  # type: ignore[call-overload]  # torch's stubs lack it
    loss_of = loss_for(module, data, plan, ctx.device)
    optimizer = optimizer_for(module, plan)
    amp = autocast(ctx.device, bf16=bf16(plan, ctx.device))

    def rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = data.train.take(torch.arange(count) % len(data.train))
        return x.to(ctx.device, memory_format=format), y.to(ctx.device)

    def step(count: int) -> None:
        module.train()
        x, y = rows(count)
        with amp:
            loss = loss_of(first(module(x)), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        _wait(ctx)

    def look(count: int) -> None:
        module.eval()
        with torch.no_grad():
            module(rows(count)[0])
        _wait(ctx)

    return step, look


def _seconds_a_row(run: Callable[[int], None], batch: int, ctx: Context, turn: AbstractContextManager[Any]) -> float:
    """Of batches of that size; of smaller ones where those would take too long."""
    rows, left, waited = min(2, batch), SECONDS, 0.0

    def timed() -> float:
        nonlocal left, waited
        ctx.progress(0, None, phase="estimating the time")
        asked = time.perf_counter()
        with turn:
            began = time.perf_counter()
            waited += began - asked
            run(rows)
            taken = time.perf_counter() - began
        left -= taken
        return taken

    timed()  # what a library does once is not counted
    taken = timed()
    while waited < WAITED_S and rows < batch and 2 * min(4, batch / rows) * taken < left:
        rows = min(batch, 4 * rows)
        timed()
        taken = timed()
    found = [taken]
    while waited < WAITED_S and left > taken and len(found) < STEPS:
        found.append(timed())
    return statistics.median(found) / rows


def _wait(ctx: Context) -> None:
    if ctx.device == "cuda":
        torch.cuda.synchronize()
