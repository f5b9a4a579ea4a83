"""The role `settings`: with which threads, runs at once and rows of a run an engine is best deployed on this host."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from app import runtimes
from app.domain.records import Version
from app.domain.specs import TrialSpec
from app.errors import NotFound
from app.runtimes import Engine, LoadOptions
from workers.context import Context
from workers.nn.loaded import runtime_of
from workers.nn.measure import alone
from workers.nn.requests import Request
from workers.passes import Outcome
from workers.trials import kept
from workers.trials.speed import rows_for

ROUNDS, BLOCK_S = 5, 0.06
# Where a round of all settings takes long, fewer rounds have to do.
PATIENCE_S = 20.0
# What is better by less than this is noise: the simpler setting is recommended.
WORTH = 1.05


class Plan(NamedTuple):
    """As a deployment takes them. threads: of the engine, for all its instances together."""

    instances: int
    threads: int
    batch: int


class SettingsTrial(BaseModel):
    """candidate: the key that the engine is kept under. batch: the rows that the objective is about."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    candidate: str
    objective: Literal["latency", "throughput", "size"]
    batch: int


def run(spec: TrialSpec, ctx: Context) -> Outcome:
    """The report's `settings`: what was tried, the best of it, and that as fields of a deployment. Raises NotFound."""
    asked = SettingsTrial.model_validate(spec.model_dump())
    held = kept.find(ctx.artifacts, asked.candidate)
    if held is None:
        raise NotFound(f"the candidate {asked.candidate[:12]} is kept no more", retryable=True)
    version, folder = kept.fetch(held, ctx.scratch / "kept", ctx)
    most = int(version.details.get("max_batch") or asked.batch) if version.signature.batched else 1
    asked = within(asked, most)
    plans = plans_for(os.cpu_count() or 1, asked.batch, most, on_gpu=version.format.startswith("tensorrt"))
    runtime = runtimes.get(runtime_of(version))
    precision = str(version.details.get("precision", "fp32"))
    with ExitStack() as stack:
        engines: dict[tuple[int, int], Engine] = {}
        for plan in plans:
            if plan[:2] not in engines:
                options = LoadOptions(plan.threads, plan.instances, precision, most)
                engines[plan[:2]] = runtime.load(folder, version.signature, options)
                stack.callback(engines[plan[:2]].close)
        rows = tried(plans, engines, version, ctx)
    return Outcome(None, {}, {"values": {}, "settings": told(rows, asked)})


def within(asked: SettingsTrial, most: int) -> SettingsTrial:
    """About no more rows than the engine takes in a run."""
    return asked.model_copy(update={"batch": min(asked.batch, most)})


def plans_for(cores: int, batch: int, most: int, *, on_gpu: bool) -> list[Plan]:
    """Simple ones first: one run at a time with ever more threads; ever more runs at once on all of them."""
    powers = sorted({min(cores, 2**n) for n in range(cores.bit_length() + 1)})
    pairs = [(1, threads) for threads in powers] + [(instances, cores) for instances in powers[1:]]
    if on_gpu:
        pairs = [(1, 1), (2, 1)]
    batches = sorted({1, min(8, most), min(32, most), batch, most})
    return [Plan(instances, threads, rows) for instances, threads in pairs for rows in batches]


def tried(
    plans: list[Plan], engines: dict[tuple[int, int], Engine], version: Version, ctx: Context
) -> list[dict[str, Any]]:
    """Per plan the median over rounds, in turns, of rows a second and of a run's milliseconds. Two rounds at least, the
    first of which warms up; no further one is begun after PATIENCE_S."""
    inputs = {rows: rows_for(version, rows) for rows in {plan.batch for plan in plans}}
    seen: list[list[tuple[float, float]]] = [[] for _ in plans]
    with ThreadPoolExecutor(max(plan.instances for plan in plans)) as threads:
        began = time.perf_counter()
        for number in range(ROUNDS + 1):
            if number > 1 and time.perf_counter() - began > PATIENCE_S:
                break
            with alone():
                for plan, found in zip(plans, seen, strict=True):
                    found.append(_block(plan, engines[plan[:2]], inputs[plan.batch], threads))
            ctx.progress(number, ROUNDS, "rounds", phase="trying settings")
    middle = [np.median(found[1:], axis=0) for found in seen]
    return [
        plan._asdict() | {"rows_per_s": float(rate), "p50_ms": float(ms)}
        for plan, (rate, ms) in zip(plans, middle, strict=True)
    ]


def _block(plan: Plan, engine: Engine, inputs: Request, threads: ThreadPoolExecutor) -> tuple[float, float]:
    """Rows a second of all instances together, and the median milliseconds of a run."""
    began = time.perf_counter()

    def client(_: int) -> list[float]:
        taken: list[float] = []
        while not taken or time.perf_counter() - began < BLOCK_S:
            start = time.perf_counter()
            engine.infer(inputs)
            taken.append((time.perf_counter() - start) * 1e3)
        return taken

    runs = [ms for found in threads.map(client, range(plan.instances)) for ms in found]
    return len(runs) * plan.batch / (time.perf_counter() - began), float(np.median(runs))


def told(rows: list[dict[str, Any]], asked: SettingsTrial) -> dict[str, Any]:
    """`recommended`: fields of a deployment. For latency the shortest run of the batch that is asked about, else the
    most rows a second; the first in the list that comes within five per cent of that."""
    if asked.objective == "latency":
        rival = [row for row in rows if row["batch"] == asked.batch and row["instances"] == 1]
        least = min(row["p50_ms"] for row in rival)
        best = next(row for row in rival if row["p50_ms"] <= least * WORTH)
        why = f"a run of {best['batch']} takes {best['p50_ms']:.3f} ms"
    else:
        most = max(row["rows_per_s"] for row in rows)
        best = next(row for row in rows if row["rows_per_s"] * WORTH >= most)
        why = f"{best['rows_per_s']:,.0f} rows a second in runs of {best['batch']}"
    chosen = {"instances": best["instances"], "threads": best["threads"]}
    if asked.objective != "latency":
        chosen["max_batch"] = best["batch"]
    return {
        "tried": rows,
        "recommended": chosen,
        "told": f"On this host, of {len(rows)} settings: {_words(best)}: {why}.",
    }


def _words(best: dict[str, Any]) -> str:
    runs = "one run at a time" if best["instances"] == 1 else f"{best['instances']} runs at once"
    return f"{runs} on {best['threads']} thread{'s' if best['threads'] > 1 else ''}"
