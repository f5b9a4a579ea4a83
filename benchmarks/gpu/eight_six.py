"""The inference half on TensorRT 8.6: engines built, compared, measured, loaded and unloaded, in one table.

    python3.10 -m benchmarks.gpu.eight_six FOLDER [--networks cnn,vit] [--precisions fp32,fp16] [--seconds 2]
        [--rounds 50] [--out eight_six.json]

FOLDER: what eight_six_prepare.py wrote. Needs an NVIDIA driver, Python 3.10, numpy, pycuda and tensorrt 8.6, and of
the project app/gpu and app/errors.py; README.md beside this file says how to bring them to a machine without a network.
Ends with 0 when all was good, 1 when something was not, 2 where it cannot run.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import Problem
from app.gpu import driver
from app.gpu.device import Device
from app.gpu.inference import Plan
from app.gpu.session import Session
from benchmarks.gpu.eight_six_build import build
from benchmarks.gpu.eight_six_cases import Arrays, apart, ask, cases, networks, repeated

Build = Callable[[Any, Path, Any, str], bytes]
KEPT = 64 << 20  # bytes that a driver may keep for itself
THREADS, TURNS, WARM = 2, 20, 20


@dataclass
class Speed:
    """Milliseconds of a whole run, from writing the input to reading the output; gpu: of the network alone."""

    batch: int
    p50_ms: float
    p99_ms: float
    gpu_ms: float
    graph: bool


@dataclass
class Row:
    """One engine. error: the largest over all inputs, ‖found - wanted‖ ÷ ‖wanted‖. problem: why it is not good."""

    network: str
    precision: str
    bound: float
    problem: str | None = None
    build_s: float = 0.0
    plan_bytes: int = 0
    error: float | None = None
    uncapturable: str | None = None
    speeds: list[Speed] = field(default_factory=list)


def measure(folder: Path, trt: Any, device: Device, given: argparse.Namespace, build: Build) -> int:
    """How much was not good. Whatever fails, the rest goes on; the report is written after each step."""
    report: dict[str, Any] = {"machine": machine(trt), "engines": [], "rounds": []}
    say(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    wanted = [facts for facts in networks(folder) if not given.networks or facts["name"] in given.networks.split(",")]
    largest: tuple[dict[str, Any], bytes] | None = None
    failed = 0
    for facts in wanted:
        for precision in (p for p in given.precisions.split(",") if p in facts["bounds"]):
            row = Row(facts["name"], precision, facts["bounds"][precision])
            blob = _checked(row, folder, facts, trt, device, given.seconds, build)
            failed += row.problem is not None
            report["engines"].append(asdict(row))
            for line in lines(row):
                say(line)
            if blob and facts["batches"] and row.problem is None and (not largest or len(blob) > len(largest[1])):
                largest = (facts, blob)
            given.out.write_text(json.dumps(report, indent=1) + "\n")
    problem = refusal(trt, device)
    say(f"{'FAILED' if problem else 'ok'}: a plan that is none: {problem or 'refused in words'}")
    failed += bool(problem)
    if largest is not None:
        kept = kept_after(*largest, folder, trt, device, given.rounds)
        failed += kept > KEPT
        told = f"{given.rounds} rounds of loading and closing {largest[0]['name']} keep {kept / 2**20:.1f} MiB"
        report["rounds"].append({"network": largest[0]["name"], "rounds": given.rounds, "kept_bytes": kept})
        say(f"{'FAILED' if kept > KEPT else 'ok'}: {told}")
    report["failed"] = failed
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    say(f"{failed} not good" if failed else "all good")
    return failed


def _checked(
    row: Row, folder: Path, facts: Any, trt: Any, device: Device, seconds: float, build: Build
) -> bytes | None:
    """Fills in the row: builds, runs everything against what is known, and measures."""
    try:
        began = time.monotonic()
        blob = build(trt, folder / f"{row.network}.onnx", facts, row.precision)
        row.build_s, row.plan_bytes = time.monotonic() - began, len(blob)
        plan = Plan(trt, device, blob)
        try:
            inputs = list(cases(folder, facts))
            session = plan.session()
            # Twice each: the second run of a size is a CUDA graph's.
            row.error = max(apart(ask(session, x), y) for _ in range(2) for x, y in inputs)
            row.uncapturable = session.uncapturable
            row.error = max(row.error, _together(plan, inputs))
            if not row.error <= row.bound:
                row.problem = f"relative error {row.error:.1e}, at most {row.bound:.0e}"
            row.speeds = [_speed(session, inputs, batch, seconds) for batch in facts["batches"]]
        finally:
            plan.close()
    except Exception as failed:  # TypeError and others from the bindings, too: what is measured after it still can be
        row.problem = _said(failed)
        return None
    return blob


def _together(plan: Plan, inputs: Sequence[tuple[Arrays, Arrays]]) -> float:
    """The largest error when sessions of one plan run at the same time, each in a thread of its own."""
    found: list[float] = []
    problems: list[Exception] = []

    def work(first: int) -> None:
        try:
            session = plan.session()
            for turn in range(TURNS):
                x, y = inputs[(first + turn) % len(inputs)]
                found.append(apart(ask(session, x), y))
            session.close()
        except Exception as failed:
            problems.append(failed)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    return max(found) if len(found) == THREADS * TURNS else float("inf")


def _speed(session: Session, inputs: Sequence[tuple[Arrays, Arrays]], batch: int, seconds: float) -> Speed:
    x = repeated(inputs[0][0], batch)
    shapes = {name: array.shape for name, array in x.items()}
    walls: list[float] = []
    gpu: list[float] = []
    end = time.perf_counter() + seconds
    while len(walls) < 3 * WARM or time.perf_counter() < end:
        began = time.perf_counter()
        with session.filling(shapes) as room:
            for name, array in x.items():
                room[name][...] = array
        session.run()
        walls.append(time.perf_counter() - began)
        gpu.append(session.times.compute_ms if session.times else 0.0)
    p50, p99 = (float(np.percentile(walls[WARM:], q)) * 1e3 for q in (50, 99))
    graph = session.times is not None and session.times.graph
    return Speed(batch, p50, p99, float(np.median(gpu[WARM:])), graph)


def refusal(trt: Any, device: Device) -> str | None:
    """What is wrong with how a broken plan is refused; None when it is refused in words."""
    try:
        Plan(trt, device, bytes(4096)).close()
    except Problem as refused:
        return None if "does not load" in refused.detail else refused.detail
    except Exception as failed:
        return _said(failed)
    return "it was taken"


def kept_after(facts: Any, blob: bytes, folder: Path, trt: Any, device: Device, rounds: int) -> int:
    """Bytes of the GPU held after so many rounds of loading, running and closing, beyond those after one."""
    x, _ = list(cases(folder, facts))[-1]
    after_first = 0
    for number in range(rounds):
        plan = Plan(trt, device, blob)
        ask(plan.session(), x)
        plan.close()
        if number == 0:
            after_first = device.memory()[0]
    return max(0, after_first - device.memory()[0])


def _said(error: Exception) -> str:
    return error.detail if isinstance(error, Problem) else f"{type(error).__name__}: {error}"


def machine(trt: Any) -> dict[str, Any]:
    """What this is."""
    gpu = driver.gpu()
    told: dict[str, Any] = {"python": platform.python_version(), "numpy": np.__version__, "tensorrt": trt.__version__}
    try:
        told["pycuda"] = importlib.metadata.version("pycuda")
    except importlib.metadata.PackageNotFoundError:
        told["pycuda"] = None
    told |= {"machine": platform.machine(), "cores": os.cpu_count(), "kernel": platform.release()}
    return (asdict(gpu) if gpu else {}) | told


def lines(row: Row) -> Iterator[str]:
    head = f"{'FAILED' if row.problem else 'ok'}: {row.network} {row.precision}"
    if row.error is None:
        yield f"{head}: {row.problem}"
        return
    yield (
        f"{head}: relative error {row.error:.1e} (at most {row.bound:.0e}), built in {row.build_s:.1f} s, "
        f"{row.plan_bytes / 2**20:.1f} MiB" + (f"; no CUDA graph: {row.uncapturable}" if row.uncapturable else "")
    )
    for one in row.speeds:
        rows = one.batch / one.p50_ms * 1e3 if one.p50_ms else 0.0
        yield (
            f"  batch {one.batch:<4} p50 {one.p50_ms:8.3f} ms  p99 {one.p99_ms:8.3f} ms  GPU {one.gpu_ms:8.3f} ms  "
            f"{rows:9.0f} rows/s{'' if one.graph else '  (no graph)'}"
        )


def say(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> int:
    given = _arguments(arguments)
    if not (given.folder / "networks.json").is_file():
        say(f"{given.folder} has no networks.json: eight_six_prepare.py writes it")
        return 2
    # First the driver: without one TensorRT's Runtime ends the process.
    if (problem := driver.missing()) is not None:
        say(problem)
        return 2
    try:
        trt, cuda = importlib.import_module("tensorrt"), importlib.import_module("pycuda.driver")
    except ImportError as error:
        say(f"a library is missing: {error}")
        return 2
    if not trt.__version__.startswith("8.6."):
        say(f"this is for TensorRT 8.6, and here is {trt.__version__}: `make gpu-check` is for that")
        return 2
    return 1 if measure(given.folder, trt, Device(cuda), given, build) else 0


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", default="", help="all of the folder unless it is given")
    parser.add_argument("--precisions", default="fp32,fp16")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each batch that is measured")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("eight_six.json"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
