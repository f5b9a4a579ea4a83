"""What `make gpu-check` says: lines while it goes on, and the table and the aims at its end."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu import engines
from benchmarks.gpu.engines import Built
from benchmarks.gpu.served import Served
from benchmarks.gpu.timing import Speed


class Telling:
    """Counts what failed, and keeps what was found in two files that are written anew after every step: a driver may
    take the process with it."""

    def __init__(self, name: str, folder: Path | None) -> None:
        self.failed = 0
        self.report: dict[str, Any] = {"engines": [], "speed": {}}
        self._lines: list[str] = []
        self._name, self._folder = name, folder

    def say(self, line: str) -> None:
        self._lines.append(line)
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def count(self, good: bool, told: str) -> None:
        self.failed += not good
        self.say(f"{'ok' if good else 'FAILED'}: {told}")

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Whatever fails within, the rest goes on."""
        try:
            yield
        except Exception as error:
            self.count(False, f"{what}: {type(error).__name__}: {one_line(error)}")
        self.write()

    def write(self) -> None:
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self.report["failed"] = self.failed
        (self._folder / f"{self._name}.json").write_text(json.dumps(self.report, indent=1))
        (self._folder / f"{self._name}.txt").write_text("\n".join(self._lines) + "\n")

    def end(self) -> None:
        for line in (*table(self.report), *aims(self.report)):
            self.say(line)
        self.say(f"FAILED: {self.failed} of the checks, marked above" if self.failed else "PASSED: every check")
        self.write()


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def engine_line(one: Built) -> str:
    head = f"{one.network} {one.precision}"
    if one.error is None:
        return f"{head}: {one.problem}"
    layers = ", ".join(f"{count} {precision}" for precision, count in one.layers.items())
    kept = f", {one.kept} nodes kept in fp32" if one.kept else ""
    told = f"{head}: relative error {one.error:.1e} (at most {engines.BOUNDS[one.precision]:.0e}), {one.seconds:.1f} s"
    return told + (f"; layers: {layers}{kept}" if layers else "")


def through_http(runtime: str, precision: str, found: Served) -> dict[str, Any]:
    """A row of the table. Its throughput is of single rows, from so many clients."""
    who = f"{runtime} {precision} through HTTP"
    row = asdict(Speed(who, found.alone_ms, found.alone_p99_ms, found.best, found.clients))
    return row | {"of": "clients"}


def table(report: dict[str, Any]) -> Iterable[str]:
    """One row at once: p50 and p99; rows a second at the best batch, or number of clients."""
    if any(report["speed"].values()):
        yield f"{'':<34}{'p50 ms':>10}{'p99 ms':>10}{'rows/s':>12}  at"
    for network, speeds in report["speed"].items():
        yield network
        for one in speeds:
            at = f"{one['batch']} clients" if one.get("of") else f"batch {one['batch']}"
            yield f"  {one['who']:<32}{one['p50_ms']:>10.3f}{one['p99_ms']:>10.3f}{one['best']:>12.0f}  {at}"


def aims(report: dict[str, Any]) -> Iterable[str]:
    """Aims, which are no checks: a lesser GPU may miss them with nothing broken."""
    if not str(report.get("runtime")).startswith("tensorrt"):
        return
    p50 = {one["who"]: one["p50_ms"] for one in report["speed"].get("resnet50", ())}
    engine, served = p50.get(f"{report['runtime']} fp16"), report.get("served") or {}
    for rival, wanted in (("torch eager fp32", 3.0), ("torch.compile fp16", 1.5)):
        times = p50[rival] / engine if engine and rival in p50 else None
        told = f"fp16 ResNet-50 at batch 1 is at least {wanted:g}× as fast as {rival}"
        yield _aim(told, times is not None and times >= wanted, None if times is None else f"{times:.2f}×")
    added, busy = served.get("added_ms"), served.get("busy")
    told = "HTTP adds at most 0.5 ms at p50 to the engine's own time, one client"
    yield _aim(told, added is not None and added <= 0.5, None if added is None else f"{added:.3f} ms")
    told = "with enough clients the GPU is busy 90 % of the time"
    yield _aim(told, busy is not None and busy >= 0.9, None if busy is None else f"{busy:.0%}")


def _aim(told: str, reached: bool, found: str | None) -> str:
    return f"aim {'not measured' if found is None else 'reached' if reached else 'NOT reached'}: {told}" + (
        f": {found}" if found else ""
    )
