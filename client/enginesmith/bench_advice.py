"""What a deployment's settings should be: guessed from what was seen, or tried out one after the other (`--tune`)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from .bench import Bench, Point
from .client import Client
from .errors import DeploymentFailed, EnginesmithError
from .records import Record

Settings = dict[str, Any]
TUNED = ("instances", "threads", "max_batch")
NOISE = 0.03  # differences below this are none
REMATCHES = 3
_WANTED = ("model", "instances", "max_batch", "max_delay_ms", "max_queue", "force")  # of PUT, where it cannot be asked


class Changed(EnginesmithError):
    """Somebody else has changed the deployment meanwhile."""

    hint = "look at it with `enginesmith deployments`; what they want was left as it is"


def suggest(sweep: Sequence[Point], deployment: Record, built_for: int, cores: int | None) -> dict[str, Any]:
    """Settings and the reasons for them, from a sweep alone; nothing is tried. built_for: the engine's own max_batch.

    cores: of the machine that serves; None where it is not known.
    """
    limit, instances = int(deployment.get("max_batch") or built_for), int(deployment.get("instances") or 1)
    threads = deployment.get("threads")
    best = max(sweep, key=lambda point: float(point["per_s"]))
    why: list[str] = []
    found: dict[str, Any] = {"max_batch": limit, "instances": instances, "threads": threads}
    largest = max((_largest(point) for point in sweep), default=0)
    most = max(point["concurrency"] for point in sweep)
    if largest >= limit and most > limit * instances and limit < built_for:
        found["max_batch"] = min(built_for, limit * 2)
        why.append(f"batches were full at {limit} rows and more requests waited: a larger max_batch takes more at once")
    elif largest and largest * 2 <= limit <= most:
        found["max_batch"] = max(1, largest)
        why.append(
            f"no batch had more than {largest} rows with {most} clients: a smaller max_batch warms up "
            "sooner, and refuses requests of more rows"
        )
    stages, busy = best.get("stages_ms"), best.get("server_cores")
    if cores and busy is not None and stages:
        waits, runs = stages["queue"], stages["compute_infer"]
        if most > 1 and busy < 0.6 * cores and waits > 0.5 * runs and instances < cores:
            found["instances"] = instances + 1
            why.append(f"{busy:.1f} of {cores} cores were busy while requests waited for the engine: one instance more")
        single = next((p for p in sweep if p["concurrency"] == 1 and p.get("stages_ms")), None)
        if single and single["stages_ms"]["compute_infer"] < 1.0 and threads is None and cores > 1:
            found["threads"] = 1
            why.append(
                f"a run takes {single['stages_ms']['compute_infer']:.2f} ms: too little to share out among threads, "
                "which then wait for each other"
            )
    if not why:
        why.append("nothing seen speaks against the settings as they are")
    return found | {"why": why, "tried": False}


def _largest(point: Point) -> int:
    """Rows of the largest batch seen, as far as the histogram's buckets tell."""
    batch = point.get("batch") or {}
    bounds = [int(float(bound)) for bound in (batch.get("histogram") or {}) if bound != "more"]
    return max(bounds) if bounds else round(batch.get("mean") or 0)


def tune(
    bench: Bench,
    deployment: Record,
    built_for: int,
    concurrency: int,
    cores: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Tries settings out with PUT and leaves the best there; the original ones where none is better, on errors, and on
    Ctrl-C. First instances and threads, then a larger max_batch (with a smaller one requests would be refused that are
    taken now); at last the best one against the original, in turns.

    Raises ApiError, Unreachable, DeploymentFailed, Changed.
    """
    if deployment.get("canary") or deployment.get("shadow"):
        raise EnginesmithError("a canary or a shadow is going on: --tune would measure two versions at once")
    trial = _Trial(bench, deployment, concurrency, say)
    original = {name: deployment[name] for name in TUNED if name in trial.taken and name in deployment}
    chosen = original
    with _terminated_is_interrupted():
        try:
            trial.measure(original)
            for shape in _shapes(cores, "threads" in trial.taken):
                trial.measure(original | shape)
            best = trial.best()
            if int(original.get("max_batch") or built_for) < built_for:
                trial.measure(best | {"max_batch": built_for})
            best = trial.best()
            before = after = None
            if best != original:
                rounds = trial.rematch(original, best)
                before, after = (sum(side) / len(rounds) for side in zip(*rounds, strict=True))
                if all(b > a for a, b in rounds) and after > before * (1 + NOISE):
                    chosen = best
        finally:
            trial.put(chosen)
    return {
        "concurrency": concurrency,
        "candidates": trial.tried,
        "original": original,
        "chosen": chosen,
        "applied": chosen != original,
        "per_s_before": before,
        "per_s_after": after,
    }


def _shapes(cores: int, has_threads: bool) -> list[Settings]:
    """How an engine may be spread over the cores: a few large instances, or many small ones."""
    counts = sorted({1, 2, max(1, cores // 2), cores})
    if not has_threads:
        return [{"instances": n} for n in counts]
    found = [{"instances": n, "threads": max(1, cores // n)} for n in counts if n <= cores]
    return [*found, {"instances": 1, "threads": 1}] if cores > 1 else [*found, {"instances": 2, "threads": 1}]


class _Trial:
    """Puts settings and measures them."""

    def __init__(self, bench: Bench, deployment: Record, concurrency: int, say: Callable[[str], None]) -> None:
        self.bench, self.concurrency, self.say = bench, concurrency, say
        self.deployments = bench.client.deployments
        self.taken = _wanted_fields(bench.client)
        self.wanted = {k: v for k, v in deployment.items() if k in self.taken and v is not None}
        self.generation = int(deployment["generation"])
        self.tried: list[dict[str, Any]] = []

    def put(self, settings: Settings) -> None:
        """Waits until it is served so. Raises Changed, DeploymentFailed."""
        if int(self.deployments.get(self.bench.name)["generation"]) != self.generation:
            raise Changed(f"deployment {self.bench.name} was changed by somebody else while it was tuned")
        fields = {k: v for k, v in (self.wanted | settings).items() if k != "model"}
        with _uninterrupted():  # or nobody would know whether it has been put
            made = self.deployments.deploy(self.bench.name, self.wanted["model"], wait=False, **fields)
            self.generation = int(made["generation"])
        self.deployments.settled(made)

    def measure(self, settings: Settings) -> None:
        """Puts and measures, unless that has been done. Settings that do not load are noted, and that is all."""
        if any(tried["settings"] == settings for tried in self.tried):
            return
        self.say(f"{self.bench.name}: trying {shown(settings)}")
        try:
            self.put(settings)
        except DeploymentFailed as failed:
            self.tried.append({"settings": settings, "error": failed.detail})
            return
        point = self.bench.closed(self.concurrency)
        seen = {k: point.get(k) for k in ("per_s", "p50_ms", "p99_ms", "refused", "errors", "server_cores")}
        self.tried.append({"settings": settings} | seen)

    def best(self) -> Settings:
        """The most requests a second; of those that are about equal, the lowest p99."""
        good = [tried for tried in self.tried if tried.get("per_s") and not tried["errors"]]
        if not good:
            return dict(self.tried[0]["settings"])
        top = max(tried["per_s"] for tried in good)
        near = [tried for tried in good if tried["per_s"] >= top * (1 - NOISE)]
        return dict(min(near, key=lambda tried: float(tried["p99_ms"]))["settings"])

    def rematch(self, original: Settings, best: Settings) -> list[tuple[float, float]]:
        """Both in turns, so that a machine that has become slower meanwhile slows both: requests a second of each."""

        def again(settings: Settings, name: str) -> float:
            self.say(f"{self.bench.name}: {name} again")
            self.put(settings)
            return float(self.bench.closed(self.concurrency)["per_s"])

        return [(again(original, "the original"), again(best, "the best")) for _ in range(REMATCHES)]


def shown(settings: Settings) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items() if value is not None) or "the defaults"


def _wanted_fields(client: Client) -> tuple[str, ...]:
    """What PUT takes: what is not sent goes back to its default, so everything that is there must be."""
    try:
        page = client.transport.json("GET", "/openapi.json")
        content = page["paths"]["/v1/deployments/{name}"]["put"]["requestBody"]["content"]
        return tuple(content["application/json"]["schema"]["properties"])
    except (EnginesmithError, KeyError, ValueError):
        return _WANTED


@contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, so that the original settings are put back then too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if heard:
        raise KeyboardInterrupt
