"""How fast a candidate is, in turns with another, each on what will serve it: an engine in its runtime, else torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    contestants = {"candidate": (version, folder)}
    if against is not None:
        held = kept.find(ctx.artifacts, against)
        if held is None:
            raise NotFound(f"the baseline {against[:12]} is kept no more", retryable=True)
        contestants["baseline"] = kept.fetch(held, (ctx.fetched or ctx.scratch) / "kept", ctx)
    (timed,) = race(contestants, "baseline" if against else "candidate", [batch], ctx, rounds=rounds)
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
    contestants: Mapping[str, tuple[Version, Path]],
    reference: str,
    batches: Sequence[int],
    ctx: Context,
    *,
    rounds: int = ROUNDS,
) -> Iterator[Timed]:
    """All contestants in turns, with equal threads; batch after batch. One that is not batched runs with one row."""
    versions = [version for version, _ in contestants.values()]
    if not batches:
        return
    with ExitStack() as stack:
        opened = {name: _opened(*of, max(batches), ctx, stack) for name, of in contestants.items()}
        for batch in batches:
            ctx.progress(0, rounds, "rounds", phase=f"measuring speed at batch {batch}")
            yield interleaved(
                {name: run_of(batch) for name, run_of in opened.items()},
                reference,
                batch=batch if all(version.signature.batched for version in versions) else 1,
                threads=ctx.threads,
                runtimes={name: runtime_of(version) for name, (version, _) in contestants.items()},
                device="cuda" if any(v.format.startswith("tensorrt") for v in versions) else "cpu",
                rounds=rounds,
                tell=lambda done: ctx.progress(done, rounds, "rounds"),
            )


def _opened(version: Version, folder: Path, most: int, ctx: Context, stack: ExitStack) -> Callable[[int], Run]:
    """For a number of rows, at most `most`, a call that runs the version once on so many random ones."""
    if version.format == "torch":
        module = load(folder, version).module

        def eager(batch: int) -> Run:
            rows = rows_for(version, batch)
            given = tuple(torch.from_numpy(rows[t.name]) for t in version.signature.inputs)

            def once() -> None:
                with torch.inference_mode():
                    module(*given)

            return once

        return eager
    engine, _ = load_engine(version, folder, ctx.threads, most)
    stack.callback(engine.close)

    def ready(batch: int) -> Run:
        rows = rows_for(version, batch)
        return lambda: engine.infer(rows)

    return ready


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
