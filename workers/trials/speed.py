"""How fast a candidate is, in turns with another, each on what will serve it: an engine in its runtime, else torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.domain.records import Version
from app.errors import NotFound
from workers.context import Context
from workers.net import load
from workers.nn.interleaved import ROUNDS, Timed, interleaved
from workers.nn.loaded import load_engine, runtime_of
from workers.nn.requests import Request
from workers.trials import kept

Run = Callable[[], object]


def measure(
    version: Version, folder: Path, batch: int, against: str | None, ctx: Context, *, rounds: int = ROUNDS
) -> dict[str, Any]:
    """latency_ms (p50 of a run), throughput (rows a second), speedup over what is kept under `against` with the middle
    half of its rounds, and the latency of both. Raises NotFound where that is kept no more."""
    ctx.progress(0, rounds, "rounds", phase="measuring speed")
    contestants = {"candidate": (version, folder)}
    if against is not None:
        held = kept.find(ctx.artifacts, against)
        if held is None:
            raise NotFound(f"the baseline {against[:12]} is kept no more", retryable=True)
        contestants["baseline"] = kept.fetch(ctx.artifacts, held, (ctx.fetched or ctx.scratch) / "kept")
    timed = race(contestants, "baseline" if against else "candidate", batch, ctx, rounds=rounds)
    ours, ratio = timed.latencies["candidate"], timed.ratios["candidate"]
    found: dict[str, Any] = {
        "batch": ours.batch,
        "latency_ms": ours.p50_ms,
        "throughput": ours.batch / ours.p50_ms * 1e3,
        "latency": {name: at.model_dump(mode="json") for name, at in timed.latencies.items()},
    }
    if against is not None:
        found |= {"speedup": ratio.ratio, "speedup_low": ratio.low, "speedup_high": ratio.high, "rounds": ratio.rounds}
    return found


def race(
    contestants: dict[str, tuple[Version, Path]], reference: str, batch: int, ctx: Context, *, rounds: int = ROUNDS
) -> Timed:
    """All contestants in turns, with equal threads. A version that is not batched runs with one row."""
    with ExitStack() as stack:
        runs = {name: opened(*of, batch, ctx, stack) for name, of in contestants.items()}
        versions = [version for version, _ in contestants.values()]
        rows = batch if all(version.signature.batched for version in versions) else 1
        return interleaved(
            runs,
            reference,
            batch=rows,
            threads=ctx.threads,
            runtimes={name: runtime_of(version) for name, (version, _) in contestants.items()},
            device="cuda" if any(v.format.startswith("tensorrt") for v in versions) else "cpu",
            rounds=rounds,
            tell=lambda done: ctx.progress(done, rounds, "rounds"),
        )


def opened(version: Version, folder: Path, batch: int, ctx: Context, stack: ExitStack) -> Run:
    """A call that runs the version once on random rows."""
    inputs = rows_for(version, batch)
    if version.format == "torch":
        module = load(folder, version).module
        given = tuple(torch.from_numpy(inputs[t.name]) for t in version.signature.inputs)

        def eager() -> None:
            with torch.inference_mode():
                module(*given)

        return eager
    engine, _ = load_engine(version, folder, ctx.threads, batch)
    stack.callback(engine.close)
    return lambda: engine.infer(inputs)


def rows_for(version: Version, batch: int) -> Request:
    """Random inputs by name, as `workers.net.example` draws them; open sizes as the engine was built for."""
    from workers.net import example

    shapes = version.details.get("shapes") or {}
    rows = batch if version.signature.batched else 1
    found = {}
    for tensor, drawn in zip(version.signature.inputs, example(version.signature, batch=rows), strict=True):
        array = drawn.numpy()
        if tensor.name in shapes:
            shape = [rows if a == tensor.batch_axis else n for a, n in enumerate(shapes[tensor.name])]
            array = np.resize(array, shape).astype(array.dtype)
        found[tensor.name] = np.ascontiguousarray(array)
    return found
