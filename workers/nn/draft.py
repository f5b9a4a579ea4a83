"""What a version of format `torch` says about itself: size, sparsity, quality and latency, all measured here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from app.domain.records import Latency, Metrics, Quality, Version
from workers.context import Context
from workers.net import Net, layer_sparsity, parameters, save, sparsity
from workers.nn.data import Data
from workers.nn.macs import macs
from workers.nn.measure import latency
from workers.nn.predict import eager, sensible_batch
from workers.nn.quality import Answers, answers, quality

BATCHES = (1, 64)


def judged(net: Net, data: Data, ctx: Context) -> Answers:
    """The network's answers to the whole of the split that versions are judged by here (`ctx.split`)."""
    ctx.progress(0, None, phase="measuring accuracy")
    rows = data.split(ctx.split)
    return answers(eager(net.module, ctx.device), rows, sensible_batch(rows.x.shape[1:]))


def torch_draft(
    net: Net, source: Version, ctx: Context, data: Data | None, found: Answers | None, **details: Any
) -> tuple[Path, dict[str, Any]]:
    """Saves the network; returns the folder and the fields of its version. found: what `judged` gave."""
    folder = ctx.folder("version")
    measured: Quality | None = None
    if data is not None and found is not None:
        measured = quality(found, data.ref, ctx.split)
    timed = eager_latency(net, ctx) if ctx.times else ()
    net.module.cpu()
    save(net, folder)
    kept = {k: v for k, v in source.details.items() if k == "masked"}
    record = data.record if data else None
    return folder, {
        "format": "torch",
        "signature": net.signature,
        "parameters": parameters(net.module),
        "macs": macs(net.module, net.example(batch=1)),
        "sparsity": sparsity(net.module),
        "metrics": Metrics(quality=measured, latency=timed, layer_sparsity=layer_sparsity(net.module)),
        "trainable": True,
        "task": net.task or (data.task if data else None),
        "labels": net.labels or (record.labels if record else None),
        "preprocess": net.preprocess or (record.preprocess if record else None),
        "details": kept | {k: v for k, v in details.items() if v is not None},
    }


def eager_latency(net: Net, ctx: Context) -> tuple[Latency, ...]:
    """torch eager at batch 1 and 64; a model that is not batched, one request at a time."""
    ctx.progress(0, None, phase="measuring latency")
    module = net.module.to(ctx.device).eval()
    found = []
    for batch in BATCHES if net.signature.batched else BATCHES[:1]:
        inputs = tuple(t.to(ctx.device) for t in net.example(batch=batch))

        def run(inputs: tuple[torch.Tensor, ...] = inputs) -> None:
            with torch.inference_mode():
                module(*inputs)

        found.append(latency(run, runtime="torch", batch=batch, threads=torch.get_num_threads(), device=ctx.device))
    return tuple(found)
