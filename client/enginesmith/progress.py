"""A progress bar for a job while it runs, drawn from its events; plain lines where there is no terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from .client import Client
from .errors import JobFailed
from .records import Event, Job, Record

SHOWN = ("epoch", "loss", "val_accuracy", "val_r2")


def follow(client: Client, job: Job, console: Console, title: str | None = None, *, check: bool = True) -> Job:
    """Watches a job to its end. Raises JobFailed unless it succeeded or check is False."""
    name = title or f"{job.kind} {job.get('model') or job.spec.get('name') or ''}".strip()
    columns = (
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[says]}[/]"),
    )
    plain = not console.is_terminal
    with Progress(*columns, console=console, disable=plain) as bars:
        task = bars.add_task(name, total=None, says="queued")
        says, phase = "", ""
        for event in client.jobs.watch(job):
            if event.type == "progress":
                at = event.data.get("progress") or event.data
                bars.update(task, completed=at.get("done") or 0, total=at.get("total"))
            says = _says(event) or says
            phase = str(event.data.get("phase") or phase)
            bars.update(task, says=" · ".join(part for part in (phase, says) if part))
        ended = client.jobs.get(job)
        good = ended.status == "succeeded"
        bars.update(task, total=1, completed=1 if good else 0, says=outcome(ended))
    if plain:
        console.print(f"{'✓' if good else '✗'} {name}: {outcome(ended)}", markup=False, highlight=False, soft_wrap=True)
    if check and not good:
        raise JobFailed(ended)
    return ended


def outcome(job: Job) -> str:
    """How a job ended, in a few words."""
    if job.status != "succeeded":
        return job.status
    result = job.result or Record()
    if (result.get("report") or {}).get("dry_run"):
        return "looked"
    parts = [str(result.get("model") or job.status)]
    if result.get("verdict"):
        parts.append(str(result.verdict))
    return " · ".join(parts)


def _says(event: Event) -> str:
    if event.type == "metrics":
        return "  ".join(f"{key} {figure(event.data[key])}" for key in SHOWN if event.data.get(key) is not None)
    return ""


def figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
