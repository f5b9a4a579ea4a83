"""What every command shares: the client, the consoles, and how results are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from .client import Client
from .errors import EnginesmithError
from .progress import follow
from .records import Job, Record


class UsageError(EnginesmithError):
    """The command line is wrong in a way that only reading it shows: exit code 2."""


class State:
    def __init__(self, url: str | None, key: str | None, as_json: bool) -> None:
        self._url, self._key = url, key
        self.as_json = as_json
        self.err = Console(stderr=True, quiet=as_json)
        self.out = Console()

    @cached_property
    def client(self) -> Client:
        return Client(self._url, self._key, retries=3)

    def close(self) -> None:
        if "client" in self.__dict__:  # not merely to close it is one made
            self.client.close()

    def answer(self, value: Any, show: Callable[[], None] | None = None) -> None:
        """The result: JSON for machines, else what `show` prints, else the JSON all the same."""
        if self.as_json or show is None:
            sys.stdout.write(json.dumps(value, indent=None if self.as_json else 2, default=_plain) + "\n")
        else:
            show()

    def say(self, text: str) -> None:
        self.out.print(text, markup=False, highlight=False, soft_wrap=True)

    def table(self, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
        table = Table(*columns, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*("" if cell is None else str(cell) for cell in row))
        # Where nobody looks, nothing is cut off to the width of a terminal.
        console = self.out if self.out.is_terminal else Console(width=250)
        console.print(table, markup=False, highlight=False)

    def warn(self, job: Job) -> None:
        """What the service said of the job when it took it."""
        for warning in job.get("warnings") or ():
            self.err.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)

    def finish(self, job: Job, wait: bool, title: str | None = None, show: Callable[[Job], None] | None = None) -> Job:
        """Follows a job to its end (unless not asked to wait) and prints it: with `show`, or the version that it made.
        Raises JobFailed."""
        self.warn(job)
        if not wait:
            self.answer(job, lambda: self.say(job.id))
            return job
        try:
            ended = follow(self.client, job, self.err, title)
        except KeyboardInterrupt:
            self.err.print(f"the job goes on: enginesmith jobs watch {job.id}", markup=False, soft_wrap=True)
            raise
        self.answer(ended, lambda: show(ended) if show else self.say(_made(ended)))
        return ended


def _made(job: Job) -> str:
    return str((job.result or Record()).get("model") or job.status)


def state(context: typer.Context) -> State:
    found = context.find_object(State)
    assert found is not None
    return found


def pairs(given: Iterable[str] | None) -> dict[str, Any]:
    """`["epochs=3", "finetune.lr=0.1"]` → {"epochs": 3, "finetune": {"lr": 0.1}}; values are JSON, else text."""
    found: dict[str, Any] = {}
    for item in given or ():
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UsageError(f"{item!r} is not KEY=VALUE")
        *path, last = key.split(".")
        inner = found
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UsageError(f"{key!r} goes into {part!r}, which is a value already")
        try:
            inner[last] = json.loads(value)
        except ValueError:
            inner[last] = value
    return found


def read_json(path: str | None, what: str) -> Any:
    """A JSON file, or JSON itself when it starts with a bracket."""
    if path is None:
        return None
    try:
        if path.lstrip()[:1] in ("{", "["):
            return json.loads(path)
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - the path is the user's own words
            return json.load(file)
    except ValueError as error:
        raise UsageError(f"{what} is not JSON: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def size(count: float | None) -> str:
    """Bytes for people."""
    if count is None:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
