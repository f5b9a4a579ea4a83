"""The service's own metrics of what it serves, as lines of Prometheus' text form."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from app.serving import shadow
from app.serving.loading import Loading
from app.serving.place import Place


def lines(
    places: Mapping[str, Place], missing: Collection[str], loading: Loading, returns: Mapping[str, int]
) -> Iterator[str]:
    """missing: deployments not served as wanted. returns: canaries taken back, by deployment."""
    held = sorted(places.items())
    yield from _gauge("deployment_ready", "1 when served as wanted", ((n, int(n not in missing)) for n, _ in held))
    loaded = ((n, int(p.main is not None)) for n, p in held)
    yield from _gauge("deployment_loaded", "0 when nothing is loaded: it sleeps, loads or has failed", loaded)
    rows = ((n, sum(lane.batcher.waiting_rows for lane in p.lanes)) for n, p in held)
    yield from _gauge("queue_rows", "Rows that wait", rows)
    held_bytes = ((n, loading.budget.of(p.lanes)) for n, p in held)
    yield from _gauge("engine_memory_bytes", "What its engines hold, as far as it can be told", held_bytes)
    on_gpu = [(n, sum(getattr(lane.batcher.engine, "gpu_bytes", 0) for lane in p.lanes)) for n, p in held]
    if any(nbytes for _, nbytes in on_gpu):
        yield from _gauge("engine_gpu_bytes", "What its engines hold on the GPU, as far as it is told", on_gpu)
    yield "# HELP enginesmith_engine_memory_limit_bytes What all engines together may hold; 0 for no bound"
    yield "# TYPE enginesmith_engine_memory_limit_bytes gauge"
    yield f"enginesmith_engine_memory_limit_bytes {loading.budget.limit}"
    waking = ((n, p.waiting) for n, p in held)
    yield from _gauge("waking_requests", "Requests that wait for it to be loaded again", waking)
    loads = ((n, p.loads) for n, p in held)
    yield from _gauge("loads_total", "How often its engines were loaded", loads, "counter")
    told = sorted((dict.fromkeys(places, 0) | dict(returns)).items())  # from 0 on: a first one is an increase
    yield from _gauge("canary_returns_total", "Canaries that broke a bound here", told, "counter")
    yield from shadow.exposition(loading.tallies)


def _gauge(metric: str, about: str, values: Iterable[tuple[str, int]], kind: str = "gauge") -> Iterator[str]:
    yield f"# HELP enginesmith_{metric} {about}"
    yield f"# TYPE enginesmith_{metric} {kind}"
    for name, value in values:
        yield f'enginesmith_{metric}{{deployment="{name}"}} {value}'
