"""Enginesmith beside its peers: the same network, engine and threads in all of them, rounds A B C A B C in one run.

    python benchmarks/serving.py [--contestants ours,triton] [--workloads tiny-binary] [--rounds 5] [--seconds 3]
    python benchmarks/serving.py --soak 1000000          does the app's memory grow?

Peers are installed into .bench/ when they are first needed. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peers import Rows, Sample
from benchmarks.peers.engine import Engine, decode
from benchmarks.rig import open_loop, report, wrk
from benchmarks.rig.contestants import (
    BARE,
    CACHE,
    CONTESTANTS,
    OURS,
    ROOT,
    Broken,
    Contestant,
    Server,
    check_answers,
    versions_of,
    wait_until_it_answers,
)
from benchmarks.rig.figures import Phase
from benchmarks.rig.networks import network
from benchmarks.rig.processes import cpu_ms, memory_mb, resident_mb
from benchmarks.rig.samples import samples
from benchmarks.rig.soak import app_of, soak_alone
from benchmarks.rig.targets import open_loop_name, targets

WORKLOADS = ("tiny-binary", "tiny-json", "resnet-binary", "resnet-jpeg")
CORES = os.cpu_count() or 1
SAMPLES = 16


class Run:
    """Everything of one run: what was asked, the servers that live, the phases so far."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given = given
        self.folder = folder
        self.phases: list[Phase] = []
        self.differences: dict[str, float] = {}
        self.left_out: dict[str, str] = {}
        self.app_mb: float | None = None

    def model(self, model: str, workloads: list[str]) -> None:
        """Every contestant with one model: started, checked, then measured in rounds."""
        import numpy as np

        onnx = network(model, CACHE / "networks")
        threads = self.given.threads_tiny if model == "tiny" else self.given.threads_resnet
        content = samples(model, SAMPLES)
        engine = Engine(onnx, threads)
        right = {w: np.concatenate([engine(_tensor(w, s)) for s in content]) for w in workloads}
        del engine
        with self._servers(model, onnx, threads) as servers:
            there = [(c, servers[c.server]) for c in CONTESTANTS if self._takes_part(c) and c.server in servers]
            for contestant, server in there:
                try:
                    with server.awake():
                        self._check(contestant, server, content, right)
                except Broken as error:
                    self._leave_out(contestant, error)
            there = [(c, server) for c, server in there if self._takes_part(c)]
            for workload in workloads:
                for concurrency in self._concurrencies(model):
                    for turn in range(self.given.rounds):
                        for contestant, server in self._turned(there, turn):
                            with self._leaving_out(contestant, server):
                                self._closed(contestant, server, workload, concurrency, turn, content[0])
            if "tiny-binary" in workloads and self.given.rate:
                for turn in range(self.given.rounds):
                    for contestant, server in self._turned(there, turn):
                        with self._leaving_out(contestant, server):
                            self._open(contestant, server, turn, content[0])
            if model == "tiny" and OURS in servers:
                self.app_mb = resident_mb(app_of(servers[OURS]))

    def _takes_part(self, contestant: Contestant, model: str | None = None) -> bool:
        if model is not None and model not in getattr(contestant.peer, "MODELS", (model,)):
            return False
        return contestant.name in self.given.contestants and contestant.name not in self.left_out

    def _leave_out(self, contestant: Contestant, error: Broken) -> None:
        """The others are measured all the same; the report says who is missing."""
        self.left_out[contestant.name] = str(error)
        _say(f"{contestant.name} is LEFT OUT: {error}")

    @contextlib.contextmanager
    def _leaving_out(self, contestant: Contestant, server: Server) -> Iterator[None]:
        """Who breaks in the middle is measured no further; what was measured before stays in the report."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            self._leave_out(contestant, Broken(f"{error}{server.tail()}"))

    def _turned(self, there: list[tuple[Contestant, Server]], turn: int) -> list[tuple[Contestant, Server]]:
        """Every other round goes the other way round, so that nobody always comes after the same one."""
        left = [(contestant, server) for contestant, server in there if self._takes_part(contestant)]
        return left if turn % 2 == 0 else left[::-1]

    def _concurrencies(self, model: str) -> list[int]:
        return list(self.given.concurrency or ((1, 16, 64) if model == "tiny" else (1, 8, 32)))

    @contextlib.contextmanager
    def _servers(self, model: str, onnx: Path, threads: int) -> Iterator[dict[str, Server]]:
        """One of each, started one after the other and paused."""
        running: dict[str, Server] = {}
        try:
            for contestant in CONTESTANTS:
                if not self._takes_part(contestant, model) or contestant.server in running:
                    continue
                _say(f"starting {contestant.server} with {model}")
                folder = self.folder / f"{contestant.server}-{model}"
                try:
                    server = running[contestant.server] = Server(contestant, model, onnx, threads, folder)
                except Broken as error:
                    self._leave_out(contestant, error)
                else:
                    server.tree.pause()
            yield running
        finally:
            for server in running.values():
                server.tree.ask_to_end()
            for server in running.values():
                server.tree.end()

    def _check(self, contestant: Contestant, server: Server, content: list[Sample], right: dict[str, Rows]) -> None:
        if contestant.name == BARE:
            return
        for workload, rows in right.items():
            ask = contestant.peer.ask(workload, content[0])
            if ask is None:
                continue
            wait_until_it_answers(server, ask)
            if contestant.name != "fixed":
                largest = check_answers(server, contestant, workload, content, rows)
                self.differences[f"{contestant.name}, {workload}"] = largest
            # Every size of batch once: the first run of a size is slower.
            wrk.run(server.given.port, ask, self._concurrencies(server.given.model)[-1], 1, self.folder)
        _say(f"{contestant.name} answers" + ("" if contestant.name == "fixed" else " as the bare engine does"))

    def _closed(
        self, contestant: Contestant, server: Server, workload: str, concurrency: int, turn: int, sample: Sample
    ) -> None:
        ask = None if contestant.name == BARE else contestant.peer.ask(workload, sample)
        if contestant.name != BARE and ask is None:
            return
        with server.awake(ask):
            load, before = os.getloadavg()[0], cpu_ms(server.tree.pid)
            if ask is None:
                told = server.tell(f"{concurrency} {self.given.seconds}")
                requests, per_s, p50_ms, errors = told["requests"], told["per_s"], told["p50_ms"], 0
            else:
                requests, per_s, p50_ms, errors = wrk.run(
                    server.given.port, ask, concurrency, self.given.seconds, self.folder
                )
            used = (cpu_ms(server.tree.pid) - before) / max(1, requests)
            memory = memory_mb(server.tree.pid)
        phase = Phase(contestant.name, workload, concurrency, turn, requests, per_s, p50_ms, errors, used, memory, load)
        self._keep(phase)

    def _open(self, contestant: Contestant, server: Server, turn: int, sample: Sample) -> None:
        if contestant.name == BARE:
            return
        ask = contestant.peer.ask("tiny-binary", sample)
        with server.awake(ask):
            load, before = os.getloadavg()[0], cpu_ms(server.tree.pid)
            told = open_loop.run(server.given.port, ask, self.given.rate, self.given.open_seconds)
            used = (cpu_ms(server.tree.pid) - before) / max(1, told.requests)
            memory = memory_mb(server.tree.pid)
        name = open_loop_name(self.given.rate)
        phase = Phase(
            contestant.name, name, 0, turn, told.requests, self.given.rate, told.p50_ms, told.errors, used, memory,
            load, told.p99_ms,
        )  # fmt: skip
        self._keep(phase)

    def _keep(self, phase: Phase) -> None:
        self.phases.append(phase)
        _say(
            f"round {phase.round + 1}  {phase.workload} × {phase.concurrency}  {phase.contestant:<9}"
            f" {phase.per_s:>9,.1f}/s  p50 {phase.p50_ms:.3f} ms"
            + (f"  p99 {phase.p99_ms:.3f} ms" if phase.p99_ms is not None else "")
            + (f"  CPU {phase.cpu_ms:.3f} ms" if phase.cpu_ms is not None else "")
            + (f"  {phase.errors} ERRORS" if phase.errors else "")
        )

    def text(self) -> str:
        """The whole report."""
        given = self.given
        parts = [f"$ {_command()}", ""]
        for workload in given.workloads:
            if any(p.workload == workload for p in self.phases):
                concurrencies = self._concurrencies(workload.partition("-")[0])
                parts += [report.closed_loop(self.phases, workload, concurrencies), ""]
        name = open_loop_name(given.rate)
        if any(p.workload == name for p in self.phases):
            parts += [report.open_loop(self.phases, name), ""]
        parts += [report.target_lines(self._targets()), ""]
        parts += [f"{c.name:<9} {c.told}" for c in CONTESTANTS if c.name in given.contestants]
        parts += [f"LEFT OUT: {name}: {why.splitlines()[0]}" for name, why in self.left_out.items()]
        parts += [
            "",
            "CPU ms: of the server's processes, per request, at the highest concurrency. MB: of all its processes.",
            f"medians of {given.rounds} rounds of {given.seconds:g} s; ratios are medians of the rounds' own ratios",
            f"engine threads: {given.threads_tiny} (tiny), {given.threads_resnet} (resnet); "
            + ", ".join(f"{k}: {' '.join(v) if isinstance(v, list) else v}" for k, v in report.machine(CORES).items()),
            report.load_line(self.phases, CORES),
        ]
        return "\n".join(parts)

    def _targets(self) -> list[Any]:
        return targets(self.phases, self._concurrencies("tiny")[-1], self.given.rate, self.app_mb)

    def record(self) -> dict[str, Any]:
        return {
            "command": _command(),
            "machine": report.machine(CORES),
            "versions": {c.name: versions_of(c) for c in CONTESTANTS if c.name in self.given.contestants},
            "targets": [t._asdict() | {"met": t.met} for t in self._targets()],
            "left_out": self.left_out,
            "largest_difference_from_bare": self.differences,
            "phases": [p._asdict() for p in self.phases],
        }


def _command() -> str:
    return shlex.join(["python", "benchmarks/serving.py", *sys.argv[1:]])


def _tensor(workload: str, sample: Sample) -> Rows:
    return decode(sample.jpeg)[None] if workload.endswith("jpeg") else sample.x


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _names(known: tuple[str, ...]) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [n for n in names if n not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
        return names

    return parse


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    everyone = tuple(c.name for c in CONTESTANTS)
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--contestants", type=_names(everyone), default=list(everyone), help="names with commas")
    asked.add_argument("--without", type=_names(everyone), default=[], help="names with commas")
    asked.add_argument("--workloads", type=_names(WORKLOADS), default=list(WORKLOADS), help="names with commas")
    asked.add_argument("--concurrency", type=lambda t: [int(n) for n in t.split(",")], help="1,16,64; ResNet: 1,8,32")
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--seconds", type=float, default=3, help="of one phase, whole")
    asked.add_argument("--rate", type=float, default=300, help="of the open loop, requests a second; 0 for none")
    asked.add_argument("--open-seconds", type=float, default=10, help="of one phase of the open loop")
    asked.add_argument("--threads-tiny", type=int, default=1, help="of the engine")
    asked.add_argument("--threads-resnet", type=int, default=CORES, help="of the engine")
    asked.add_argument("--soak", type=int, metavar="N", help="only send N requests to ours, and watch its memory")
    asked.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "serving", help="PATH.txt, .json")
    given = asked.parse_args(arguments)
    given.contestants = [name for name in given.contestants if name not in given.without]
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        wrk.require()
        with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
            if given.soak:
                return soak_alone(given.soak, given.threads_tiny, Path(name))
            run = Run(given, Path(name))
            for model in ("tiny", "resnet"):
                if chosen := [w for w in given.workloads if w.startswith(model)]:
                    run.model(model, chosen)
        text = run.text()
        print(text)
        report.save(given.out, text, run.record())
        return 1 if run.left_out else 0
    except (Broken, FileNotFoundError, LookupError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
