"""What each deployment has served, under Triton's metric names: plain counters, written out when Prometheus asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# Triton's reasons for a failed request.
REJECTED, CANCELED, BACKEND, OTHER = "REJECTED", "CANCELED", "BACKEND", "OTHER"


@dataclass
class Meter:
    """One version under one deployment. Times are sums over requests, in microseconds, as Triton's are."""

    model: str
    version: str
    succeeded: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    runs: int = 0
    pending: int = 0
    total_us: float = 0.0
    queue_us: float = 0.0
    input_us: float = 0.0
    infer_us: float = 0.0
    output_us: float = 0.0


class Meters:
    """The meters of one process. A version that is deployed again goes on where it stopped."""

    def __init__(self) -> None:
        self._meters: dict[tuple[str, str], Meter] = {}

    def of(self, model: str, version: str) -> Meter:
        """model: the deployment's name, by which clients call it. version: the number of the model's version."""
        return self._meters.setdefault((model, version), Meter(model, version))

    def exposition(self) -> str:
        """Prometheus' text form."""
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        # Not through prometheus_client: it renames every counter to …_total, and dashboards look for Triton's names.
        meters = sorted(self._meters.values(), key=lambda m: (m.model, m.version))
        yield from _family("nv_inference_request_success", "Requests that succeeded", _each(meters, "succeeded"))
        failures = [(f'{_labels(m)},reason="{r}"', m.failed[r]) for m in meters for r in _REASONS]
        yield from _family("nv_inference_request_failure", "Requests that failed, by reason", failures)
        yield from _family("nv_inference_count", "Rows inferred", _each(meters, "rows"))
        yield from _family("nv_inference_exec_count", "Runs of the engine, one per batch", _each(meters, "runs"))
        pending = _each(meters, "pending")
        yield from _family("nv_inference_pending_request_count", "Requests that wait for the engine", pending, "gauge")
        for name, told, attribute in _DURATIONS:
            yield from _family(f"nv_inference_{name}_duration_us", told, _each(meters, attribute))


_REASONS = (REJECTED, CANCELED, BACKEND, OTHER)
_DURATIONS = (
    ("request", "Sum of requests' times from queue to answer", "total_us"),
    ("queue", "Sum of requests' times in the queue", "queue_us"),
    ("compute_input", "Sum of times for gathering the inputs", "input_us"),
    ("compute_infer", "Sum of times in the engine", "infer_us"),
    ("compute_output", "Sum of times for handing out the outputs", "output_us"),
)


def _labels(meter: Meter) -> str:
    return f'model="{meter.model}",version="{meter.version}"'


def _each(meters: list[Meter], attribute: str) -> list[tuple[str, float]]:
    return [(_labels(m), getattr(m, attribute)) for m in meters]


def _family(name: str, told: str, samples: Sequence[tuple[str, float]], kind: str = "counter") -> Iterator[str]:
    yield f"# HELP {name} {told}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield f"{name}{{{labels}}} {value if isinstance(value, int) else round(value)}"
