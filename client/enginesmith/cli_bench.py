"""The command `bench`."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.table import Table

from .bench import CONCURRENCIES, NEARLY, Bench, Point, about, engine_of, load_average, measure
from .bench_advice import shown, suggest, tune
from .bench_inputs import from_file, made_up
from .cli_state import UsageError, state

_BUSY = 0.85  # of a core: above this it may be the generator that is measured
_CROWDED = 1.5  # of the cores, as a load average before the first point
LONGEST_S = 3600.0
FASTEST = 100_000.0  # requests a second: beyond what one generator sends, and it takes memory for each that is due
MOST_REQUESTS = 20_000_000
_LOCAL = {"127.0.0.1", "localhost", "::1"}


def add_to(app: typer.Typer) -> None:
    app.command()(bench)


def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="the deployment")],
    input: Annotated[Path | None, typer.Option(help="what to send: .npy, .npz, .json, .jpg or .png")] = None,
    body: Annotated[str, typer.Option(help="how made-up rows travel: binary or json")] = "binary",
    rows: Annotated[int, typer.Option(min=1, max=65536, help="rows of one request")] = 1,
    concurrency: Annotated[str, typer.Option(help="clients at a time, with commas")] = ",".join(
        map(str, CONCURRENCIES)
    ),
    seconds: Annotated[float, typer.Option(help="how long each point is measured")] = 5.0,
    rate: Annotated[
        float | None,
        typer.Option(help="requests a second of the open loop; 0: none  [default: 60 % of the best]"),
    ] = None,
    tuning: Annotated[
        bool, typer.Option("--tune", help="try settings out, and leave the best ones: other clients notice")
    ] = False,
    cores: Annotated[
        int | None, typer.Option(min=1, help="of the machine that serves; known where it is this one")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="the JSON file; the table lies beside it as .txt")] = None,
) -> None:
    """Measures a deployment: throughput and latency at several concurrencies, then at a constant rate."""
    said = state(context)
    concurrencies = _concurrencies(concurrency)
    _check("--seconds", seconds, 0.05, LONGEST_S)
    if rate:
        _check("--rate", rate, 0.1, FASTEST)
        if rate * seconds > MOST_REQUESTS:
            raise UsageError(f"--rate {rate:g} for {seconds:g} s is more than {MOST_REQUESTS:,} requests: take less")
    if body not in ("binary", "json"):
        raise UsageError(f"--body takes binary or json, not {body!r}")
    save = save or Path(f"bench-{name}-{time.strftime('%Y%m%d-%H%M%S')}.json")
    if not save.parent.is_dir():
        raise UsageError(f"--save: there is no folder {save.parent}")
    client = said.client
    deployment = client.deployments.get(name)
    engine = engine_of(client, deployment)
    as_json = body == "json"
    bodies = from_file(input, as_json, rows) if input else made_up(engine, as_json, rows)
    bench = Bench(client, name, bodies, seconds)
    bench.check()
    if cores is None and (urlsplit(client.url).hostname or "") in _LOCAL:
        cores = os.cpu_count()
    found = about(client, deployment, engine, bench, ["enginesmith", *sys.argv[1:]])
    before = load_average()
    with said.err.status("measuring") as status:
        found |= measure(bench, concurrencies, rate, status.update)
        built_for = int((engine.get("details") or {}).get("max_batch") or 64)
        # Where others are at work here, idle cores and waiting requests say nothing about the deployment.
        is_calm = before is None or cores is None or before[0] <= cores * _CROWDED
        found["suggestion"] = suggest(found["sweep"], deployment, built_for, cores if is_calm else None)
        if tuning:
            at = max(concurrencies)
            found["tune"] = tune(bench, deployment, built_for, at, cores or 4, status.update)
    found["load_average"] = {"before": before, "after": load_average()}
    text = table_of(found)
    save.write_text(json.dumps(found, indent=2) + "\n")
    save.with_suffix(".txt").write_text(text)
    said.answer(found | {"saved": str(save)}, lambda: print(f"{text}saved: {save}"))


def _concurrencies(given: str) -> tuple[int, ...]:
    try:
        found = tuple(int(word) for word in given.split(","))
    except ValueError:
        found = ()
    if not found or any(not 1 <= n <= 4096 for n in found):
        raise UsageError(f"--concurrency takes whole numbers from 1 to 4096 with commas, not {given!r}")
    return found


def _check(option: str, given: float, least: float, most: float) -> None:
    if not least <= given <= most:  # nor is NaN
        raise UsageError(f"{option} takes a number from {least:g} to {most:g}, not {given:g}")


def table_of(found: dict[str, Any]) -> str:
    """The whole report as text."""
    held = io.StringIO()
    console = Console(file=held, width=140)
    deployment, told = found["deployment"], found["input"]
    settings = {k: v for k, v in deployment.items() if k not in ("name", "model")}

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    line(f"{deployment['name']} · {deployment['model']} ({found['engine']['format']}) · {shown(settings)}")
    line(f"{told['told']} as {told['content_type']}, {told['bytes']:,} bytes · {found['seconds']:g} s a point")
    loads = found["load_average"]
    line(f"{found['at']} · load average {_loads(loads['before'])} before, {_loads(loads['after'])} after")
    line("")
    console.print(_table(found["sweep"], found["open"]), markup=False, highlight=False)
    line("")
    best = found["best"]
    line(
        f"best: {best['per_s']:,.0f} requests/s with {best['concurrency']} clients; {best['enough_concurrency']} "
        f"are enough for {NEARLY:.0%} of it"
    )
    if found["open"] and found["open"]["generator_late_p99_ms"] > 1:
        line(f"the generator itself was late by {found['open']['generator_late_p99_ms']:.1f} ms (p99): see the load")
    if max(p["generator_cpu"] for p in [*found["sweep"], *([found["open"]] if found["open"] else [])]) > _BUSY:
        line("the generator took nearly a whole core: where that is shown it may be the generator that was measured")
    busiest = max(found["sweep"], key=lambda point: int(point["concurrency"]))
    crowd, machine = loads["before"], found["client"]["cores"]
    if crowd and machine and crowd[0] > machine * _CROWDED:
        line(f"this machine was busy with other work (load average {crowd[0]:.1f} on {machine} cores): measure again")
    if histogram := (busiest["batch"] or {}).get("histogram"):
        shares = ", ".join(f"≤ {rows}: {n}" if rows != "more" else f"more: {n}" for rows, n in histogram.items())
        line(f"batches by rows, with {busiest['concurrency']} clients: {shares}")
    if busiest["batch"] is None:
        line("batches are not shown: /metrics could not be read, or saw nothing of this deployment")
    _advise(found, line)
    line(f"command: {found['command']}")
    return held.getvalue()


def _advise(found: dict[str, Any], line: Any) -> None:
    suggestion, tuned = found["suggestion"], found.get("tune")
    if tuned is None:
        values = {k: suggestion[k] for k in ("instances", "threads", "max_batch")}
        line(f"suggested, from what was seen: {shown(values)}; --tune tries it out")
        for why in suggestion["why"]:
            line(f"  {why}")
        return
    line(f"tuned, at {tuned['concurrency']} clients:")
    for tried in tuned["candidates"]:
        seen = tried.get("error") or f"{tried['per_s']:,.0f}/s, p99 {_ms(tried['p99_ms'])} ms"
        line(f"  {shown(tried['settings'])}: {seen}")
    if tuned["applied"]:
        line(
            f"applied: {shown(tuned['chosen'])} ({tuned['per_s_before']:,.0f}/s before, "
            f"{tuned['per_s_after']:,.0f}/s after, in turns)"
        )
    else:
        line(f"left as it was: {shown(tuned['original'])}; nothing was better by more than the noise")


def _table(sweep: list[Point], constant: Point | None) -> Table:
    columns = ("load", "requests/s", "p50 ms", "p95 ms", "p99 ms", "max ms", "batch", "runs", "429", "errors",
               "server ms/request", "generator CPU")  # fmt: skip
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column == "load" else "right")
    for point in [*sweep, *([constant] if constant else [])]:
        load = f"{point['concurrency']} clients" if "concurrency" in point else f"{point['rate']:,.0f}/s constant"
        batch = point["batch"] or {}
        table.add_row(
            load,
            f"{point['per_s']:,.1f}",
            *(_ms(point[name]) for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms")),
            f"{batch['mean']:.1f}" if batch else "",
            str(batch.get("runs", "")),
            str(point["refused"]),
            " ".join(f"{status}: {n}" for status, n in point["errors"].items()) or "0",
            f"{point['server_cpu_ms']:.3f}" if point.get("server_cpu_ms") is not None else "",
            f"{point['generator_cpu']:.0%}",
        )
    return table


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _loads(loads: list[float] | None) -> str:
    return "unknown" if loads is None else f"{loads[0]:.2f}"
