"""The one table at the end: every version, what it weighs, how good it is, how fast it is."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith import Record, Version
from rich import box
from rich.table import Table

BATCHES = (1, 64)
WIDTH = 120  # of the table, in characters


@dataclass(frozen=True)
class Row:
    version: Version
    made: str


def latency(version: Version, batch: int) -> float | None:
    """Measured p50 in milliseconds."""
    found: list[Record] = [row for row in version.metrics.latency if row.batch == batch]
    return float(found[0].p50_ms) if found else None


def busiest(rows: list[Row]) -> float:
    """The highest load (1 minute) that any latency was measured under."""
    return max((float(m.load_1m) for row in rows for m in row.version.metrics.latency), default=0.0)


def results(rows: list[Row], base: Version) -> Table:
    """rows in order; speed-up is over torch eager on `base` at the same batch."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left")
    table.title = "what was measured (prune: half of the weights, half of the channels)"
    table.caption = f"speed-up: over torch eager on {base.ref} at the same batch; p50 in milliseconds"
    for name in ("version", "made by", "runs on"):
        table.add_column(name, no_wrap=True)
    for name in ("para-\nmeters", "sparsity", "size", "test accuracy, %\n[95 % interval]"):
        table.add_column(name, justify="right", no_wrap=True)
    for batch in BATCHES:
        table.add_column(f"p50 ms\nbatch {batch}", justify="right", no_wrap=True)
        table.add_column("speed\n-up", justify="right", no_wrap=True)
    for row in rows:
        version = row.version
        quality = version.metrics.quality
        speeds = []
        for batch in BATCHES:
            mine, theirs = latency(version, batch), latency(base, batch)
            speeds.append(f"{mine:.3f}" if mine else "")
            speeds.append(f"{theirs / mine:.1f}×" if mine and theirs else "")
        table.add_row(
            version.ref,
            row.made,
            "torch" if version.format == "torch" else version.format,
            f"{version.parameters:,}" if version.parameters is not None else "",
            f"{version.sparsity:.1%}" if version.sparsity is not None else "",
            f"{version.bytes / 1024:.0f} KiB",
            f"{100 * quality.value:.2f} [{100 * quality.low:.1f}, {100 * quality.high:.1f}]" if quality else "",
            *speeds,
            end_section=version.format == "onnxruntime",
        )
    return table
