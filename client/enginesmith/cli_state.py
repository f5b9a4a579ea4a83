"""What every command shares: the client, the consoles, and how results are printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from .client import Client
from .errors import EnginesmithError
from .progress import follow
from .records import Job, Record

NARROW = 100  # columns of a table that people read
VERDICTS = {"rejected": 4, "unproven": 5}  # exit codes
_LOCAL = {"127.0.0.1", "localhost", "::1"}


class UsageError(EnginesmithError):
    """The command line is wrong in a way that only reading it shows: exit code 2."""

    def __init__(self, detail: str, hint: str | None = None) -> None:
        super().__init__(detail)
        self.hint = hint


class State:
    def __init__(self, url: str | None, key: str | None, as_json: bool) -> None:
        self._url, self._key = url, key
        self.as_json = as_json
        self.err = Console(stderr=True, quiet=as_json)
        self.out = Console()
        # Where remarks go: beside the result, so that stdout stays what a script reads.
        self.aside = self.err

    @cached_property
    def client(self) -> Client:
        return Client(self._url, self._key, retries=3)

    @property
    def cores(self) -> int | None:
        """Of the machine that serves; known where it is this one."""
        return os.cpu_count() if (urlsplit(self.client.url).hostname or "") in _LOCAL else None

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

    def tell(self, text: str) -> None:
        """Beside the result."""
        self.aside.print(text, markup=False, highlight=False, soft_wrap=True)

    def table(
        self,
        columns: Iterable[str],
        rows: Iterable[Iterable[Any]],
        *,
        beside: bool = False,
        narrow: bool = False,
    ) -> None:
        """beside: where remarks go. narrow: at most 100 columns wide, with cells of several lines."""
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for column in columns:
            table.add_column(column, overflow="fold" if narrow else "ellipsis")
        for row in rows:
            table.add_row(*("" if cell is None else str(cell) for cell in row))
        console = self.aside if beside else self.out
        # Where nobody looks, nothing is cut off to the width of a terminal.
        width = min(console.width, NARROW) if console.is_terminal else NARROW
        if narrow or not console.is_terminal:
            console = Console(width=width if narrow else 250, stderr=console.stderr, quiet=console.quiet)
        console.print(table, markup=False, highlight=False)

    def warn(self, job: Job) -> None:
        """What the service said of the job when it took it."""
        for warning in job.get("warnings") or ():
            self.err.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)

    def follow(self, job: Job, title: str | None = None) -> Job:
        """Says which job it is, and watches it to its end. Raises JobFailed."""
        say: Callable[[str], None] = lambda text: self.err.print(text, markup=False, highlight=False, soft_wrap=True)  # noqa: E731
        if not job.ended:
            again = f"enginesmith jobs watch {job.id}, or jobs cancel"
            say(f"job {job.id}: Ctrl-C ends the waiting, not the job (then: {again})")
        try:
            return follow(self.client, job, self.err, title)
        except KeyboardInterrupt:
            say(f"the job goes on: enginesmith jobs watch {job.id}")
            raise

    def finish(self, job: Job, wait: bool, show: Callable[[State, Job], None], title: str | None = None) -> None:
        """Follows a job to its end (unless not asked to wait), prints with `show` what it found, and ends with the exit
        code of its verdict. Raises JobFailed."""
        self.warn(job)
        if not wait:
            self.answer(job, lambda: self.say(job.id))
            return
        ended = self.follow(job, title)
        self.answer(ended, lambda: show(self, ended))
        leave(ended)


def leave(job: Job) -> None:
    """Ends the command with the exit code that the job's verdict has; goes on where all is well."""
    if code := VERDICTS.get(str((job.result or Record()).get("verdict"))):
        raise typer.Exit(code)


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


def read_json(path: str | None, what: str, *, fields: bool = False) -> Any:
    """A JSON file, or JSON itself when it starts with a bracket; with `fields` also "epochs=2 lr=0.1"."""
    if path is None:
        return None
    if fields and "=" in path and path.lstrip()[:1] != "{" and not Path(path).exists():
        return pairs(path.replace(",", " ").split())
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
