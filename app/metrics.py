"""What each deployment has served, under Triton's metric names: plain counters, written out when Prometheus asks."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

# Triton's reasons for a failed request.
REJECTED, CANCELED, BACKEND, OTHER = "REJECTED", "CANCELED", "BACKEND", "OTHER"


REASONS = (REJECTED, CANCELED, BACKEND, OTHER)
# Upper bounds of buckets. Rows: the sizes that batches are built for. Seconds: from below an engine's own time to a
# client's patience.
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
KEPT_S = 900.0  # what is no longer served is told so long: whoever asks every minute has seen the end of it
STAGES = ("queue", "input", "infer", "output")
GPU_STAGES = ("copy_in", "compute", "copy_out")


class Histogram:
    """Counts by upper bound, as Prometheus has them. counts: not cumulative, one more than bounds for what is above."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def samples(self, labels: str) -> Iterator[tuple[str, str, float]]:
        """(suffix, labels, value) of the text form."""
        so_far = 0
        for bound, count in zip((*(f"{b:g}" for b in self.bounds), "+Inf"), self.counts, strict=True):
            so_far += count
            yield "_bucket", f'{labels},le="{bound}"', so_far
        yield "_sum", labels, self.total
        yield "_count", labels, so_far


@dataclass(slots=True)
class Batches:
    """The runs of one size, and their times in microseconds: a time of a run, not of its requests."""

    runs: int = 0
    input_us: float = 0.0
    infer_us: float = 0.0
    output_us: float = 0.0


def _stages() -> dict[str, Histogram]:
    return {stage: Histogram(SECONDS) for stage in STAGES}


@dataclass(slots=True)
class Meter:
    """One version under one deployment. Times are sums over requests, in microseconds, as Triton's are.

    model: the deployment's name. ref: what it serves, `digits@5`. refused: by what was wrong, finer than Triton's
    reasons. missed: deadlines. hung: runs that were given up. by_rows: the runs by their size. stages: the queue's time
    of each request, the others' of each run, in seconds. last_s: when a run last ended (time.time). on_gpu: of each run
    there, as its own clock tells. graphs: runs that were one CUDA graph.
    """

    model: str
    ref: str
    succeeded: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    hung: int = 0
    rows: int = 0
    runs: int = 0
    pending: int = 0
    pending_rows: int = 0
    total_us: float = 0.0
    queue_us: float = 0.0
    input_us: float = 0.0
    infer_us: float = 0.0
    output_us: float = 0.0
    last_s: float = 0.0
    sizes: Histogram = field(default_factory=lambda: Histogram(ROWS))
    stages: dict[str, Histogram] = field(default_factory=_stages)
    by_rows: dict[int, Batches] = field(default_factory=dict)
    on_gpu: dict[str, Histogram] = field(default_factory=dict)
    graphs: int = 0

    @property
    def version(self) -> str:
        return self.ref.rpartition("@")[2]

    def refuse(self, reason: str, why: str) -> None:
        """reason: Triton's word. why: a finer one."""
        self.failed[reason] += 1
        self.refused[why] += 1
        self.missed += why == "deadline"

    def ran(self, came: Sequence[float], rows: int, times: tuple[float, float, float, float], now: float) -> None:
        """A run ended. came: when each of its requests did. times: started, gathered, ended, cut apart. Monotonic."""
        started, gathered, ended, cut = times
        requests, sum_came = len(came), sum(came)
        self.runs += 1
        self.rows += rows
        self.queue_us += (started * requests - sum_came) * 1e6
        self.total_us += (now * requests - sum_came) * 1e6
        into, inside, out = gathered - started, ended - gathered, cut - ended
        self.input_us += into * 1e6 * requests
        self.infer_us += inside * 1e6 * requests
        self.output_us += out * 1e6 * requests
        self.last_s = time.time()
        self.sizes.add(rows)
        batches = self.by_rows.get(rows)
        if batches is None:
            batches = self.by_rows[rows] = Batches()
        batches.runs += 1
        batches.input_us += into * 1e6
        batches.infer_us += inside * 1e6
        batches.output_us += out * 1e6
        stages = self.stages
        stages["input"].add(into)
        stages["infer"].add(inside)
        stages["output"].add(out)
        queue, counts = stages["queue"], stages["queue"].counts
        for at in came:
            counts[bisect_left(SECONDS, started - at)] += 1
        queue.total += started * requests - sum_came

    def ran_on_gpu(self, copy_in: float, compute: float, copy_out: float, graph: bool) -> None:
        """What a run on a GPU took there, in seconds."""
        for stage, seconds in zip(GPU_STAGES, (copy_in, compute, copy_out), strict=True):
            self.on_gpu.setdefault(stage, Histogram(SECONDS)).add(seconds)
        self.graphs += graph


class Meters:
    """The meters of one process. A version that is deployed again soon goes on where it stopped."""

    def __init__(self) -> None:
        self._meters: dict[tuple[str, str], Meter] = {}
        self._gone: dict[tuple[str, str], float] = {}

    def of(self, model: str, ref: str) -> Meter:
        """model: the deployment's name, by which clients call it. ref: what it serves. Two versions of one number, of
        different models, may follow each other under one name."""
        return self._meters.setdefault((model, ref), Meter(model, ref))

    def keep(self, served: Collection[tuple[str, str]], now: float) -> None:
        """Forgets what has not been served for a while. served: deployments' names, and refs. now: monotonic."""
        self._gone = {key: self._gone.get(key, now) for key in self._meters if key not in served}
        for key in [key for key, since in self._gone.items() if now - since >= KEPT_S]:
            del self._meters[key]

    def exposition(self) -> str:
        """Prometheus' text form."""
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        # Not through prometheus_client: it renames every counter to …_total, and dashboards look for Triton's names.
        meters = sorted(self._meters.values(), key=lambda m: (m.model, m.version))
        yield from _family("nv_inference_request_success", "Requests that succeeded", _tritons(meters, "succeeded"))
        failures = _summed([(f'{_tritons_labels(m)},reason="{r}"', m.failed[r]) for m in meters for r in REASONS])
        yield from _family("nv_inference_request_failure", "Requests that failed, by reason", failures)
        yield from _family("nv_inference_count", "Rows inferred", _tritons(meters, "rows"))
        yield from _family("nv_inference_exec_count", "Runs of the engine, one per batch", _tritons(meters, "runs"))
        pending = _tritons(meters, "pending")
        yield from _family("nv_inference_pending_request_count", "Requests that wait for the engine", pending, "gauge")
        for name, told, attribute in _DURATIONS:
            yield from _family(f"nv_inference_{name}_duration_us", told, _tritons(meters, attribute))
        yield from self._own(meters)

    def _own(self, meters: list[Meter]) -> Iterator[str]:
        """What Triton has no name for."""
        waiting = _each(meters, "pending_rows")
        yield from _family("enginesmith_pending_rows", "Rows that wait for the engine", waiting, "gauge")
        refused = [(f'{_labels(m)},reason="{why}"', n) for m in meters for why, n in sorted(m.refused.items())]
        yield from _family("enginesmith_refused_total", "Requests that did not reach the engine, by reason", refused)
        missed, hung = _each(meters, "missed"), _each(meters, "hung")
        yield from _family("enginesmith_deadline_missed_total", "Requests whose deadline passed", missed)
        yield from _family("enginesmith_engine_hung_total", "Runs given up because they took too long", hung)
        sizes = [(_labels(m), m.sizes) for m in meters]
        yield from _histogram("enginesmith_batch_rows", "Rows of a run of the engine", sizes)
        stages = [(f'{_labels(m)},stage="{stage}"', m.stages[stage]) for m in meters for stage in STAGES]
        told = "Time in the queue, of each request; for gathering, in the engine and for handing out, of each run"
        yield from _histogram("enginesmith_stage_seconds", told, stages)
        gpus = [m for m in meters if m.on_gpu]
        times = [(f'{_labels(m)},stage="{stage}"', m.on_gpu[stage]) for m in gpus for stage in GPU_STAGES]
        if times:
            yield from _histogram("enginesmith_gpu_stage_seconds", "Time of each run on the GPU, by its events", times)
            told = "Runs that were launched as one CUDA graph"
            yield from _family("enginesmith_gpu_graph_runs_total", told, _each(gpus, "graphs"))


_DURATIONS = (
    ("request", "Sum of requests' times from queue to answer", "total_us"),
    ("queue", "Sum of requests' times in the queue", "queue_us"),
    ("compute_input", "Sum of times for gathering the inputs", "input_us"),
    ("compute_infer", "Sum of times in the engine", "infer_us"),
    ("compute_output", "Sum of times for handing out the outputs", "output_us"),
)


def _tritons_labels(meter: Meter) -> str:
    return f'model="{_escaped(meter.model)}",version="{_escaped(meter.version)}"'


def _tritons(meters: list[Meter], attribute: str) -> list[tuple[str, float]]:
    return _summed([(_tritons_labels(m), getattr(m, attribute)) for m in meters])


def _summed(samples: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Triton knows a model by one name: versions of one number, of two models under one deployment, are one to it."""
    found: dict[str, float] = {}
    for labels, value in samples:
        found[labels] = found.get(labels, 0) + value
    return list(found.items())


def _labels(meter: Meter) -> str:
    return f'{_tritons_labels(meter)},ref="{_escaped(meter.ref)}"'


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _each(meters: list[Meter], attribute: str) -> list[tuple[str, float]]:
    return [(_labels(m), getattr(m, attribute)) for m in meters]


def _family(name: str, told: str, samples: Sequence[tuple[str, float]], kind: str = "counter") -> Iterator[str]:
    yield f"# HELP {name} {told}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield f"{name}{{{labels}}} {value if isinstance(value, int) else round(value)}"


def _histogram(name: str, told: str, found: Sequence[tuple[str, Histogram]]) -> Iterator[str]:
    yield f"# HELP {name} {told}"
    yield f"# TYPE {name} histogram"
    for labels, histogram in found:
        for suffix, all_labels, value in histogram.samples(labels):
            yield f"{name}{suffix}{{{all_labels}}} {value:.9g}"
