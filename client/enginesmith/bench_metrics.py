"""What the service's /metrics say of a point: batches, stages, and the CPU that it took; from differences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .errors import EnginesmithError
from .transport import Transport

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]
_LINE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?[ \t]+(\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_STAGES = ("queue", "compute_input", "compute_infer", "compute_output")


def read(transport: Transport) -> Series | None:
    """Every series; None where this key may not see them."""
    try:
        return parse(transport.request("GET", "/metrics").text)
    except EnginesmithError:
        return None


def parse(text: str) -> Series:
    """Prometheus' text form."""
    found: Series = {}
    for line in text.splitlines():
        matched = None if line.startswith("#") else _LINE.match(line)
        if matched:
            labels = [(name, _ESCAPED.sub(_unescaped, value)) for name, value in _LABEL.findall(matched[2] or "")]
            found[matched[1], tuple(sorted(labels))] = float(matched[3])
    return found


def _unescaped(matched: re.Match[str]) -> str:
    return "\n" if matched[1] == "n" else matched[1]


def difference(before: Series | None, after: Series | None, deployment: str) -> dict[str, Any]:
    """What a deployment did between two readings, over all its versions; nothing of what cannot be told.

    A counter that went back, or several replicas behind one address, give nothing rather than something wrong.
    """
    if before is None or after is None:
        return {}

    def grown(name: str, **labels: str) -> float:
        wanted = labels.items()
        return sum(
            value - before.get(key, 0.0)
            for key, value in after.items()
            if key[0] == name and wanted <= dict(key[1]).items()
        )

    ours = {"model": deployment}
    rows, runs = grown("nv_inference_count", **ours), grown("nv_inference_exec_count", **ours)
    answered = grown("nv_inference_request_success", **ours)
    cpu = grown("process_cpu_seconds_total")
    found: dict[str, Any] = {}
    if rows > 0 and runs > 0:
        found["batch"] = {"mean": rows / runs, "runs": int(runs), "histogram": _histogram(before, after, deployment)}
    if answered > 0:
        found["stages_ms"] = {
            stage: grown(f"nv_inference_{stage}_duration_us", **ours) / answered / 1e3 for stage in _STAGES
        }
        found["answered"] = int(answered)
    if cpu > 0:
        found["server_cpu_s"] = cpu
    return found


def _histogram(before: Series, after: Series, deployment: str) -> dict[str, int] | None:
    """Batches by their rows: the bucket's upper bound → how many; None where the service has none."""
    below: dict[float, float] = {}
    for key, value in after.items():
        labels = dict(key[1])
        ours = deployment in (labels.get("model"), labels.get("deployment"))
        if ours and "le" in labels and "batch" in key[0] and key[0].endswith("_bucket"):
            bound = float(labels["le"])
            below[bound] = below.get(bound, 0.0) + value - before.get(key, 0.0)
    if not below:
        return None
    found, last = {}, 0.0
    for bound, total in sorted(below.items()):
        if total > last:
            found["more" if bound == float("inf") else f"{bound:g}"] = int(total - last)
        last = total
    return found


def gauge(series: Series | None, name: str, labels: Mapping[str, str] | None = None) -> float | None:
    """The value of one series; None where there is none."""
    return (series or {}).get((name, tuple(sorted((labels or {}).items()))))
