"""`make gpu-check`: everything that only a GPU can show, on this machine, in one table.

    python -m benchmarks.gpu.check [--runtime tensorrt] [--networks cnn,resnet50] [--precisions fp32,fp16]
        [--seconds 4] [--rounds 50] [--out benchmarks/results]

Without a GPU it says so and ends well; `--runtime openvino` goes the same way on a processor.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from app import runtimes
from app.gpu import driver
from benchmarks.gpu import engines, memory, served, timing, training
from benchmarks.gpu.engines import Built
from benchmarks.gpu.networks import SUBJECTS, Subject
from benchmarks.gpu.telling import Telling, engine_line, one_line, through_http
from benchmarks.gpu.timing import Speed

ROOT = Path(__file__).resolve().parents[2]
GPU = ("tensorrt", "tensorrt_rtx")
SERVED = "resnet50"


def main(arguments: list[str] | None = None) -> int:
    """0 when all was good, or there is no NVIDIA driver at all; 1 when something was not, also what a GPU lacks to be
    used."""
    given = _arguments(arguments)
    runtime = given.runtime or next((name for name in GPU if runtimes.get(name).available().ok), None)
    telling = Telling(f"gpu-{runtime}", None if given.short or runtime is None else given.out)
    telling.report |= {"runtime": runtime, "machine": list(machine())}
    for line in telling.report["machine"]:
        telling.say(line)
    if runtime is None:
        is_expected = driver.is_absent()
        telling.say(f"nothing was run on a GPU{'' if is_expected else ': FAILED, for there is an NVIDIA driver'}")
        return 0 if is_expected else 1
    found = runtimes.get(runtime).available()
    if not found.ok:
        telling.say(f"{runtime} cannot be used here: {found.reason}")
        return 1
    wanted = [p for p in found.precisions if given.precisions is None or p in given.precisions]
    if not wanted:
        telling.say(f"{runtime} has none of these precisions here, but {', '.join(found.precisions)}")
        return 1
    with tempfile.TemporaryDirectory(prefix="enginesmith-gpu-") as temporary:
        _run([SUBJECTS[name] for name in given.networks], wanted, runtime, Path(temporary), given, telling)
    telling.end()
    return 1 if telling.failed else 0


def _run(
    subjects: list[Subject], wanted: list[str], runtime: str, folder: Path, given: argparse.Namespace, telling: Telling
) -> None:
    """Whatever fails, the rest goes on."""
    device = "cuda" if runtime in GPU and torch.cuda.is_available() else "cpu"
    built: dict[str, list[Built]] = {subject.name: [] for subject in subjects}
    for subject in subjects:
        for precision in wanted:
            one = engines.build(subject, precision, runtime, folder)
            telling.count(one.good, engine_line(one))
            telling.report["engines"].append(asdict(one) | {"folder": one.folder.name})
            built[subject.name] += [one] if one.problem is None else []
            telling.write()
        if not given.short:
            with telling.step(f"speed of {subject.name}"):
                _speeds(subject, built[subject.name], runtime, device, folder, telling)
    if given.short:
        return
    subject = next((s for s in subjects if s.name == SERVED), subjects[0])
    with telling.step("memory after loading and closing"):
        _kept(subject, built[subject.name], runtime, given.rounds, telling)
    with telling.step("serving through HTTP"):
        _served(subject, wanted, runtime, given.seconds, telling)
    with telling.step("training"):
        telling.report["training"] = found = list(training.train_and_prune(device))
        for good, told in found:
            telling.count(good, told)
    if runtime in GPU:
        with telling.step("compute-sanitizer"):
            telling.report["sanitizer"] = said = served.sanitizer(ROOT)
            telling.failed += bool(said and said.startswith("FAILED"))
            telling.say(f"compute-sanitizer: {said or 'is not installed'}")


def _speeds(subject: Subject, built: list[Built], runtime: str, device: str, folder: Path, telling: Telling) -> None:
    """Of all that can be run, each in its turn; what cannot says why."""
    rows: list[dict[str, Any]] = []
    telling.report["speed"][subject.name] = rows

    def measure(who: str, speed: Callable[[], Speed]) -> bool:
        try:
            rows.append(asdict(speed()))
        except Exception as error:  # a compiler that is missing, a provider that is not there, a GPU that gave up
            telling.say(f"  {subject.name}: {who} cannot be measured: {one_line(error)}")
            return False
        return True

    for who, make in timing.others(subject, folder, device).items():
        measure(who, partial(_other, subject, who, make, device))
    for one in built:
        who = f"{runtime} {one.precision}"
        if not measure(who, partial(_own, subject, one, who, runtime, device)):
            telling.count(False, f"speed of {subject.name} {one.precision}")


def _other(subject: Subject, who: str, make: Callable[[], timing.Runs], device: str) -> Speed:
    return timing.speed(who, make(), subject.batches, device)


def _own(subject: Subject, one: Built, who: str, runtime: str, device: str) -> Speed:
    engine = engines.load(subject, one.precision, runtime, one.folder)
    try:

        def of(batch: int) -> timing.Run:
            x = {"input": engines.drawn(subject, batch)}
            return lambda: engine.infer(x)

        return timing.speed(who, of, subject.batches, device)
    finally:
        engine.close()


def _kept(subject: Subject, built: list[Built], runtime: str, rounds: int, telling: Telling) -> None:
    if not built:
        telling.count(False, f"no engine of {subject.name} was built that could be loaded {rounds} times")
        return
    last = built[-1]
    telling.report["kept_bytes"] = kept = memory.kept_after(subject, last.precision, runtime, last.folder, rounds)
    told = f"{rounds} rounds of loading and closing {subject.name} {last.precision} keep {kept / 2**20:.1f} MiB"
    telling.count(kept <= memory.ALLOWED, told)


def _served(subject: Subject, wanted: list[str], runtime: str, seconds: float, telling: Telling) -> None:
    first = "fp16" if "fp16" in wanted else wanted[0]
    second = next((p for p in ("fp32", *wanted) if p in wanted and p != first), first)
    found = served.serve(subject, runtime, (first, second), seconds)
    telling.report["served"] = asdict(found) | {"added_ms": found.added_ms, "precisions": [first, second]}
    telling.report["speed"].setdefault(subject.name, []).append(through_http(runtime, first, found))
    busy = "" if found.busy is None else f", the GPU busy {found.busy:.0%} of the time"
    telling.say(
        f"served, {subject.name} {first}: one client {found.alone_ms:.3f} ms, the engine {found.engine_ms:.3f} of it; "
        f"{found.best:.0f} requests/s with {found.clients} clients{busy}"
    )
    told = f"{found.swaps} swaps under load: {found.asked} requests, {len(found.failed)} failed, {found.wrong} wrong"
    telling.count(not found.failed and not found.wrong, told)


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


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runtime", choices=[name for name in runtimes.names() if name != "echo"])
    parser.add_argument("--networks", type=_some_of(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--precisions", type=_some_of(engines.BOUNDS))
    parser.add_argument("--seconds", type=float, default=served.SECONDS)
    parser.add_argument("--rounds", type=int, default=memory.ROUNDS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--short", action="store_true", help="engines of the smallest network alone")
    given = parser.parse_args(arguments)
    if given.short:
        given.networks, given.precisions = ["cnn"], given.precisions or ["fp32", "fp16"]
    return given


def _some_of(known: Collection[str]) -> Callable[[str], list[str]]:
    def some(text: str) -> list[str]:
        names = text.split(",")
        if wrong := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(wrong)} is none of {', '.join(known)}")
        return names

    return some


if __name__ == "__main__":
    sys.exit(main())
