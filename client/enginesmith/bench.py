"""Measures one deployment over HTTP: closed loops at several concurrencies, then an open loop at a constant rate."""

from __future__ import annotations

import os
import platform
import shlex
import ssl
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from . import bench_metrics
from .bench_clock import run
from .bench_inputs import Bodies
from .bench_load import Sample, closed_loop, open_loop
from .bench_wire import Target
from .client import Client
from .errors import EnginesmithError, Unreachable
from .records import Record

Point = dict[str, Any]
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)
RATE_SHARE = 0.6  # of the best throughput found, for the open loop
NEARLY = 0.95  # of the best throughput counts as reaching it
_WARM_S = 0.5  # at most; a tenth of a point's time
_SETTINGS = ("model", "instances", "max_batch", "max_delay_ms", "max_queue", "threads")


class Bench:
    """One deployment under load. seconds: how long each point is measured."""

    def __init__(self, client: Client, name: str, bodies: Bodies, seconds: float) -> None:
        self.client, self.name, self.bodies, self.seconds = client, name, bodies, seconds
        self.warm_s = min(_WARM_S, seconds / 10)
        self.target = _target(client, name, bodies)

    def check(self) -> str | None:
        """Sends one request, so that what is refused is refused with its reason. Gives the version that answered.

        Raises ApiError, Unreachable.
        """
        headers = {"Content-Type": self.bodies.content_type}
        answer = self.client.transport.request(
            "POST", f"/predict/{quote(self.name)}", headers=headers, content=self.bodies.bodies[0], repeatable=True
        )
        model: str | None = answer.headers.get("Enginesmith-Model")
        return model

    def closed(self, concurrency: int) -> Point:
        """Raises Unreachable."""
        return {"concurrency": concurrency} | self._measured(
            lambda: run(closed_loop(self.target, concurrency, self.seconds, self.warm_s))
        )

    def open(self, rate: float) -> Point:
        """Raises Unreachable."""
        return {"rate": round(rate, 3)} | self._measured(
            lambda: run(open_loop(self.target, rate, self.seconds, self.warm_s))
        )

    def _measured(self, load: Callable[[], Sample]) -> Point:
        before = bench_metrics.read(self.client.transport)
        try:
            sample = load()
        except OSError as error:
            raise Unreachable(self.client.url, error) from error
        after = bench_metrics.read(self.client.transport)
        point = told(sample, self.bodies.rows)
        seen = bench_metrics.difference(before, after, self.name)
        if (cpu_s := seen.pop("server_cpu_s", None)) is not None:
            point["server_cores"] = round(cpu_s / sample.wall_s, 3)
            if seen.get("answered"):
                point["server_cpu_ms"] = round(cpu_s / seen["answered"] * 1e3, 4)
        return point | {"batch": seen.get("batch"), "stages_ms": seen.get("stages_ms")}


def told(sample: Sample, rows: int) -> Point:
    """The figures of one point. Plain percentiles, of requests answered with 200."""
    times = np.asarray(sample.latencies) * 1e3
    late = np.asarray(sample.late) * 1e3
    refused = sample.statuses.get("429", 0)
    errors = {status: n for status, n in sorted(sample.statuses.items()) if status != "429"}
    point: Point = {
        "seconds": sample.seconds,
        "requests": len(times),
        "per_s": round(len(times) / sample.seconds, 2),
        "rows_per_s": round(len(times) * rows / sample.seconds, 2),
    }
    for name, share in (("p50_ms", 50), ("p95_ms", 95), ("p99_ms", 99), ("max_ms", 100)):
        point[name] = round(float(np.percentile(times, share)), 4) if len(times) else None
    point |= {"mean_ms": round(float(times.mean()), 4) if len(times) else None, "refused": refused, "errors": errors}
    if len(late):
        point["generator_late_p99_ms"] = round(float(np.percentile(late, 99)), 4)
    return point | {"generator_cpu": round(sample.cpu_share, 4)}


def measure(
    bench: Bench, concurrencies: Sequence[int], rate: float | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """The sweep and the open loop. rate: requests a second; None: a share of the best found; 0: no open loop.

    Raises ApiError, Unreachable.
    """
    sweep = []
    for concurrency in concurrencies:
        say(f"{bench.name}: {concurrency} at a time")
        sweep.append(bench.closed(concurrency))
    best = max(sweep, key=lambda point: float(point["per_s"]))
    if not best["requests"]:
        raise EnginesmithError(f"not one request was answered with 200: {_failures(sweep)}")
    rate = best["per_s"] * RATE_SHARE if rate is None else rate
    constant = None
    if rate:
        say(f"{bench.name}: {rate:.0f} a second")
        constant = bench.open(rate)
    reached = next(p for p in sorted(sweep, key=_concurrency) if p["per_s"] >= NEARLY * best["per_s"])
    found = {
        "per_s": best["per_s"],
        "concurrency": best["concurrency"],
        "enough_concurrency": reached["concurrency"],  # the least that comes near it
        "p99_ms": best["p99_ms"],
    }
    return {"sweep": sweep, "open": constant, "best": found}


def _concurrency(point: Point) -> int:
    return int(point["concurrency"])


def _failures(points: Sequence[Point]) -> str:
    found: dict[str, int] = {}
    for point in points:
        for status, n in {"429": point["refused"], **point["errors"]}.items():
            found[status] = found.get(status, 0) + n
    return ", ".join(f"{n} × {status}" for status, n in found.items() if n) or "no answer came"


def about(client: Client, deployment: Record, engine: Record, bench: Bench, command: Sequence[str]) -> dict[str, Any]:
    """What a figure means nothing without: what was measured, from where, with what, on how busy a machine."""
    try:
        own = version("enginesmith")
    except PackageNotFoundError:
        own = None
    return {
        "command": shlex.join(command),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "url": client.url,
        "service_version": _service_version(client),
        "deployment": {"name": bench.name} | {k: deployment[k] for k in _SETTINGS if k in deployment},
        "engine": {k: engine.get(k) for k in ("format", "built_for", "bytes")}
        | {"precision": (engine.get("details") or {}).get("precision")},
        "input": {
            "content_type": bench.bodies.content_type,
            "rows": bench.bodies.rows,
            "bytes": len(bench.bodies.bodies[0]),
            "told": bench.bodies.told,
        },
        "seconds": bench.seconds,
        "client": {
            "version": own,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "numpy": np.__version__,
            "event_loop": "uvloop" if "uvloop" in sys.modules else "asyncio",
        },
    }


def load_average() -> list[float] | None:
    return [round(n, 2) for n in os.getloadavg()] if hasattr(os, "getloadavg") else None


def engine_of(client: Client, deployment: Record) -> Record:
    """The version behind a deployment."""
    return client.models.version(str(deployment["model"]))


def _service_version(client: Client) -> str | None:
    try:
        return str(client.transport.json("GET", "/openapi.json")["info"]["version"])
    except (EnginesmithError, KeyError, ValueError):
        return None


def _target(client: Client, name: str, bodies: Bodies) -> Target:
    parts = urlsplit(client.url)
    host = parts.hostname or "127.0.0.1"
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    head = [
        f"POST {parts.path.rstrip('/')}/predict/{quote(name)} HTTP/1.1",
        f"Host: {parts.netloc.rpartition('@')[2]}",
        "User-Agent: enginesmith-bench",
        f"Content-Type: {bodies.content_type}",
    ]
    if client.transport.key:
        head.append(f"Authorization: Bearer {client.transport.key}")
    payloads = [
        "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode("latin-1") + body for body in bodies.bodies
    ]
    return Target(host, parts.port or (443 if tls else 80), tuple(payloads), tls)
