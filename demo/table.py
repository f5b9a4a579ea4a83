"""The one table at the end: every version, what it weighs, how good it is, how fast it is."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith import Record, Version
from rich.table import Table

BATCHES = (1, 64)


@dataclass(frozen=True)
class Row:
    version: Version
    made: str


def latency(version: Version, batch: int) -> float | None:
    """Measured p50 in milliseconds."""
    found: list[Record] = [row for row in version.metrics.latency if row.batch == batch]
    return float(found[0].p50_ms) if found else None


def results(rows: list[Row], base: Version) -> Table:
    """rows in order; speed-up is over torch eager on `base` at the same batch."""
    table = Table(title=f"speed-up: over torch eager on {base.ref}, same batch, same threads", title_justify="left")
    table.add_column("version", no_wrap=True)
    table.add_column("made by")
    table.add_column("runs on", no_wrap=True)
    for name in ("parameters", "sparsity", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("test accuracy [95 %]", justify="right", no_wrap=True)
    for batch in BATCHES:
        table.add_column(f"p50 ms @{batch}", justify="right", no_wrap=True)
        table.add_column(f"× @{batch}", justify="right", no_wrap=True)
    for row in rows:
        version = row.version
        quality = version.metrics.quality
        speeds = []
        for batch in BATCHES:
            mine, theirs = latency(version, batch), latency(base, batch)
            speeds.append(f"{mine:.3f}" if mine else "")
            speeds.append(f"{theirs / mine:.2f}" if mine and theirs else "")
        table.add_row(
            version.ref,
            row.made,
            "torch eager" if version.format == "torch" else version.format,
            f"{version.parameters:,}" if version.parameters is not None else "",
            f"{version.sparsity:.1%}" if version.sparsity is not None else "",
            f"{version.bytes / 1024:.0f} KiB",
            f"{quality.value:.2%} [{quality.low:.2%}, {quality.high:.2%}]" if quality else "",
            *speeds,
            end_section=version.format == "onnxruntime",
        )
    return table
