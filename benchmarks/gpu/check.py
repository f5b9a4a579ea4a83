"""`make gpu-check`: everything that only a GPU can show, on this machine, in one table.

    python -m benchmarks.gpu.check [--runtime tensorrt] [--networks cnn,resnet50] [--precisions fp32,fp16]
        [--seconds 4] [--rounds 50] [--out benchmarks/results]

Without a GPU it says so and ends well; `--runtime openvino` goes the same way on a processor.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from app import runtimes
from app.gpu import driver
from benchmarks.gpu import engines, memory, served, timing, training
from benchmarks.gpu.engines import Built
from benchmarks.gpu.networks import SUBJECTS, Subject
from benchmarks.gpu.timing import Speed

ROOT = Path(__file__).resolve().parents[2]
GPU = ("tensorrt", "tensorrt_rtx")
SERVED = "resnet50"


def main(arguments: list[str] | None = None) -> int:
    """0 when all was good, or there is no NVIDIA driver at all; 1 when something was not, also what a GPU lacks to be
    used."""
    given = _arguments(arguments)
    for line in machine():
        say(line)
    runtime = given.runtime or next((name for name in GPU if runtimes.get(name).available().ok), None)
    if runtime is None:
        is_expected = driver.is_absent()
        say(f"nothing was run on a GPU{'' if is_expected else ': FAILED, for there is an NVIDIA driver'}")
        return 0 if is_expected else 1
    found = runtimes.get(runtime).available()
    if not found.ok:
        say(f"{runtime} cannot be used here: {found.reason}")
        return 1
    wanted = [p for p in found.precisions if given.precisions is None or p in given.precisions.split(",")]
    subjects = [SUBJECTS[name] for name in given.networks.split(",")]
    with tempfile.TemporaryDirectory(prefix="enginesmith-gpu-") as temporary:
        failed = _run(subjects, wanted, runtime, Path(temporary), given)
    return 1 if failed else 0


def _run(subjects: list[Subject], wanted: list[str], runtime: str, folder: Path, given: argparse.Namespace) -> int:
    """How much failed. Whatever fails, the rest goes on."""
    device = "cuda" if runtime in GPU and torch.cuda.is_available() else "cpu"
    report: dict[str, Any] = {"machine": list(machine()), "engines": [], "speed": {}}
    failed = 0
    for subject in subjects:
        built = [engines.build(subject, precision, runtime, folder) for precision in wanted]
        for one in built:
            failed += not one.good
            say(engine_line(one))
        report["engines"] += [asdict(one) | {"folder": one.folder.name} for one in built]
        if not given.short:
            report["speed"][subject.name] = [asdict(s) for s in _speeds(subject, built, runtime, device, folder)]
    if given.short:
        _verdict(failed)
        return failed
    subject = next((s for s in subjects if s.name == SERVED), subjects[0])
    failed += _kept(subject, wanted[-1], runtime, folder, given.rounds, report)
    failed += _served(subject, wanted, runtime, given.seconds, report)
    failed += _trained(device, report)
    if runtime in GPU:
        said = served.sanitizer(ROOT)
        report["sanitizer"] = said
        failed += bool(said and said.startswith("FAILED"))
        say(f"compute-sanitizer: {said or 'is not installed'}")
    _verdict(failed)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"gpu-{runtime}.json").write_text(json.dumps(report, indent=1))
    (given.out / f"gpu-{runtime}.txt").write_text("\n".join(SAID) + "\n")
    return failed


def _verdict(failed: int) -> None:
    say(f"FAILED: {failed} of the checks, marked above" if failed else "PASSED: every check")


def _speeds(subject: Subject, built: list[Built], runtime: str, device: str, folder: Path) -> list[Speed]:
    """Of all that can be run, each in its turn; what cannot says why."""
    found: list[Speed] = []
    for who, make in timing.others(subject, folder, device).items():
        try:
            found.append(timing.speed(who, make(), subject.batches, device))
        except Exception as error:  # a compiler that is missing, a provider that is not there
            say(f"  {subject.name}: {who} cannot be measured: {' '.join(str(error).split())[:120]}")
    for one in built:
        if one.problem is None:
            engine = engines.load(subject, one.precision, runtime, one.folder)
            try:

                def of(batch: int, engine: Any = engine) -> timing.Run:
                    x = {"input": engines.drawn(subject, batch)}
                    return lambda: engine.infer(x)

                found.append(timing.speed(f"{runtime} {one.precision}", of, subject.batches, device))
            finally:
                engine.close()
    for line in speed_lines(subject, found):
        say(line)
    return found


def _kept(subject: Subject, precision: str, runtime: str, folder: Path, rounds: int, report: dict[str, Any]) -> int:
    engine_folder = folder / f"{subject.name}-{runtime}-{precision}"
    kept = memory.kept_after(subject, precision, runtime, engine_folder, rounds)
    report["kept_bytes"] = kept
    good = kept <= memory.ALLOWED
    told = f"{rounds} rounds of loading and closing {subject.name} keep {kept / 2**20:.1f} MiB"
    say(f"{'ok' if good else 'FAILED'}: {told}")
    return not good


def _served(subject: Subject, wanted: list[str], runtime: str, seconds: float, report: dict[str, Any]) -> int:
    first = "fp16" if "fp16" in wanted else wanted[0]
    found = served.serve(subject, runtime, (first, "fp32"), seconds)
    report["served"] = asdict(found) | {"added_ms": found.added_ms}
    good = not found.failed and not found.wrong
    busy = "" if found.busy is None else f", the GPU busy {found.busy:.0%} of the time"
    say(
        f"served, {subject.name} {first}: one client {found.alone_ms:.3f} ms, the engine {found.engine_ms:.3f} of it; "
        f"{found.best:.0f} requests/s with {found.clients} clients{busy}"
    )
    say(
        f"{'ok' if good else 'FAILED'}: {found.swaps} swaps under load: {found.asked} requests, "
        f"{len(found.failed)} failed, {found.wrong} wrong"
    )
    return not good


def _trained(device: str, report: dict[str, Any]) -> int:
    report["training"] = found = list(training.train_and_prune(device))
    for good, told in found:
        say(f"{'ok' if good else 'FAILED'}: {told}")
    return sum(not good for good, _ in found)


def machine() -> Iterable[str]:
    """What this is."""
    gpu = driver.gpu()
    yield f"{platform.machine()}, torch {torch.__version__}, Python {platform.python_version()}"
    if gpu is not None:
        size = f"{gpu.memory_bytes / 2**30:.0f} GiB"
        yield f"{gpu.name}, sm {gpu.capability[0]}.{gpu.capability[1]}, {size}, driver {gpu.driver}, CUDA {gpu.cuda}"
    for name in runtimes.names():
        there = runtimes.get(name).available()
        facts = " · ".join(part for part in (there.version, there.device, ", ".join(there.precisions)) if part)
        yield f"{name}: {facts if there.ok else 'not here: ' + there.reason}"


def engine_line(one: Built) -> str:
    head = f"{'ok' if one.good else 'FAILED'}: {one.network} {one.precision}"
    if one.error is None:
        return f"{head}: {one.problem}"
    layers = ", ".join(f"{count} {precision}" for precision, count in one.layers.items())
    kept = f", {one.kept} nodes kept in fp32" if one.kept else ""
    told = f"{head}: relative error {one.error:.1e} (at most {engines.BOUNDS[one.precision]:.0e}), {one.seconds:.1f} s"
    return told + (f"; layers: {layers}{kept}" if layers else "")


def speed_lines(subject: Subject, found: list[Speed]) -> Iterable[str]:
    yield f"{subject.name:<26}{'p50 ms':>10}{'p99 ms':>10}{'rows/s':>12}{'at batch':>10}"
    for one in found:
        yield f"  {one.who:<24}{one.p50_ms:>10.3f}{one.p99_ms:>10.3f}{one.best:>12.0f}{one.batch:>10}"


SAID: list[str] = []


def say(line: str) -> None:
    SAID.append(line)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runtime")
    parser.add_argument("--networks", default=",".join(SUBJECTS))
    parser.add_argument("--precisions")
    parser.add_argument("--seconds", type=float, default=served.SECONDS)
    parser.add_argument("--rounds", type=int, default=memory.ROUNDS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--short", action="store_true", help="engines of the smallest network alone")
    given = parser.parse_args(arguments)
    if given.short:
        given.networks, given.precisions = "cnn", given.precisions or "fp32,fp16"
    return given


if __name__ == "__main__":
    sys.exit(main())
