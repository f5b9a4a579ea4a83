"""`enginesmith serve`, `worker`, `reindex`, `backup` and `restore`: this process becomes the service, with its signals
and exit codes."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .cli_state import UsageError

Data = Annotated[Path | None, typer.Option(help="where the store, the models and the scratch files lie (./data)")]


# What these do they do to the stores, and ask no service.
ALONE = frozenset({"serve", "worker", "reindex", "backup", "restore", "keys"})


def add_to(app: typer.Typer) -> None:
    app.command()(serve)
    app.command()(worker)
    app.command()(reindex)
    app.command()(backup)
    app.command()(restore)


def serve(
    host: Annotated[str | None, typer.Option(help="where to listen (127.0.0.1)")] = None,
    port: Annotated[int | None, typer.Option(help="0 for a free one (8000)", min=0, max=65535)] = None,
    data: Data = None,
    workers: Annotated[int | None, typer.Option(help="workers started beside it; 0 for none (1)", min=0)] = None,
    http_processes: Annotated[
        int | None, typer.Option(help="processes that speak HTTP, for machines with many cores (1)", min=1, max=256)
    ] = None,
) -> None:
    """Runs the store, the app and its workers together until it is told to end."""
    chosen: dict[str, object] = {"--host": host, "--port": port, "--data": data, "--workers": workers}
    become("app", "serve", chosen | {"--http-processes": http_processes})


def worker(
    data: Data = None,
    queues: Annotated[str | None, typer.Option(help="which work it takes: gpu,cpu")] = None,
    count: Annotated[int | None, typer.Option(help="how many (1)", min=1)] = None,
) -> None:
    """Runs workers alone. ENGINESMITH_REDIS_URL and ENGINESMITH_STORE_URL name a service on another machine."""
    become("workers", None, {"--data": data, "--queues": queues, "--count": count})


def reindex(data: Data = None) -> None:
    """Rebuilds the index of models and data sets from their manifests."""
    become("app", "reindex", {"--data": data})


def backup(
    file: Annotated[Path, typer.Argument(help="what is written, or - for stdout; one of that name is replaced")],
    data: Data = None,
) -> None:
    """Writes what Redis alone holds into a file: jobs with their events and curves, and searches."""
    become("app", "backup", {"--data": data}, words=[str(file)])


def restore(
    file: Annotated[Path, typer.Argument(help="what `backup` wrote, or - for stdin")],
    replace: Annotated[bool, typer.Option("--replace", help="forget the jobs that Redis holds")] = False,
    data: Data = None,
) -> None:
    """Reads what `backup` wrote, and rebuilds the index. What was running then is started again."""
    become("app", "restore", {"--data": data}, words=[str(file), *(["--replace"] if replace else [])])


def become(module: str, command: str | None, options: dict[str, object], words: Sequence[str] = ()) -> None:
    """Replaces this process by `python -m module command words --option value …`. UsageError where it is not
    installed."""
    missing = [name for name in needs(module) if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"the service is not installed here ({', '.join(missing)}): pip install 'enginesmith[worker]'")
    given = [word for key, value in options.items() if value is not None for word in (key, str(value))]
    line = [sys.executable, "-m", module, *([command] if command else []), *words, *given]
    # A folder called `app` in the current directory must not be taken for ours, by the children neither.
    os.execve(sys.executable, line, os.environ | {"PYTHONSAFEPATH": "1"})


def needs(module: str) -> tuple[str, ...]:
    return ("app", "fastapi") if module == "app" else ("workers", "rq", "torch")
