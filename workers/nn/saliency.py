"""How much the loss would change without a weight: Taylor importance, from gradients over training rows."""

from __future__ import annotations

import torch
from torch import nn

from app.domain.specs import Training
from app.errors import Unprocessable
from workers.context import Context
from workers.net import Net
from workers.nn.data import Data
from workers.nn.loss import loss_for
from workers.nn.macs import macs
from workers.nn.predict import first

ROWS, FEWEST, BATCH = 1024, 128, 32
# What the backward passes may cost on a CPU, in multiply-adds: a large network is asked with fewer rows.
MOST_MACS = 2e12


def taylor(net: Net, data: Data, plan: Training, ctx: Context, seed: int) -> tuple[dict[str, torch.Tensor], str]:
    """Parameter name → the importance of each of its elements, on the CPU: |w · dL/dw|, averaged over small batches of
    up to 1,024 training rows (Molchanov et al. 2019, "Importance estimation for neural network pruning"); and a line
    that says so.

    The gradients are those of a network in use: batch norm as in evaluation, no dropout. A group's importance is the
    sum of its elements'. Raises Unprocessable where a gradient is no finite number, and what `loss_for` raises.
    """
    cost = 3 * (macs(net.module, net.example(batch=1)) or 0) if ctx.device == "cpu" else 0
    rows = data.train.sample(int(max(FEWEST, min(ROWS, MOST_MACS // max(1, cost)))), seed)
    module = net.module.to(ctx.device).eval()
    loss_of = loss_for(module, data, plan, ctx.device)
    wanted = {n: p for n, p in module.named_parameters() if p.is_floating_point()}
    trained = {n: p.requires_grad for n, p in wanted.items()}
    total = {n: torch.zeros_like(p) for n, p in wanted.items()}
    # A recurrent network's fast backward on a GPU wants train mode, which would drop out and update statistics.
    fast = not any(isinstance(m, nn.RNNBase) for m in module.modules())
    batches = rows.cuts(BATCH)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    for parameter in wanted.values():
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=fast):
            for done, (start, end) in enumerate(batches):
                ctx.progress(done, len(batches), "batches", "measuring importance")
                x, y = rows.take(order[start:end])
                loss = loss_of(first(module(x.to(ctx.device))), y.to(ctx.device))
                found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
                for (name, parameter), gradient in zip(wanted.items(), found, strict=True):
                    if gradient is not None:
                        total[name] += (parameter.detach() * gradient).abs() * (end - start) / len(rows)
    finally:
        for name, parameter in wanted.items():
            parameter.requires_grad_(trained[name])
    broken = [name for name, sum in total.items() if not bool(sum.isfinite().all())]
    if broken:
        raise Unprocessable(
            f"the gradients of {', '.join(broken[:5])} are not finite numbers: no Taylor importance without them",
            code="gradients_not_finite",
            hint="look for NaN in the weights or the data set, or prune by `importance` magnitude",
        )
    module.cpu()
    told = f"Importance: |weight × gradient of the loss|, averaged over batches of {BATCH} of {len(rows)} training rows"
    # A parameter of several names has its importance under each of them.
    names = {id(p): n for n, p in wanted.items()}
    every = {n: names[id(p)] for n, p in module.named_parameters(remove_duplicate=False) if id(p) in names}
    return {n: total[one].cpu() for n, one in every.items()}, f"{told}, summed over a group (Molchanov et al. 2019)."
