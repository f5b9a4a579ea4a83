"""Layer by layer: what became of each, and which of them mind being pruned."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from app.report import tables, words

Told = Mapping[str, Any]


def section(report: Told) -> str:
    """Of the winner of an optimize job."""
    given = report.get("layers") if "training" in report else None
    if not isinstance(given, Mapping) or not given:
        return ""
    rows = []
    for name, row in given.items():
        if isinstance(row, Mapping):
            zeros = row.get("sparsity_after")
            rows.append(
                {
                    "layer": name,
                    "channels": row.get("channels"),
                    "groups": row.get("groups"),
                    "rank": row.get("rank"),
                    "zeros": f"{100 * zeros:.1f} %" if isinstance(zeros, int | float) else None,
                    "precision": row.get("precision"),
                }
            )
    return tables.table(rows, caption="layers of the answer")


def sensitivity(held: Any) -> str:
    """The quality on validation rows with so much of one layer gone; nothing for what is no such table."""
    given = held.get("layers") if isinstance(held, Mapping) else None
    amounts = held.get("amounts") if isinstance(held, Mapping) else None
    if not isinstance(given, Mapping) or not isinstance(amounts, list) or not given:
        return ""
    rows = []
    for name, row in given.items():
        if not isinstance(row, Mapping):
            return ""
        values, others = row.get("values"), row.get("with")
        line: dict[str, Any] = {"layer": name}
        for amount, value in zip(amounts, values if isinstance(values, list) else (), strict=False):
            share = f"{100 * amount:g} %" if isinstance(amount, int | float) else str(amount)
            line[f"{share} gone"] = value if value is not None else "–"
        line["at the amount asked for"] = row.get("change")
        rows.append(line | {"together with": ", ".join(map(str, others)) if isinstance(others, list) else None})
    told = f"{held.get('name') or 'quality'} on {words.figure(held.get('rows'))} validation rows"
    if held.get("whole") is not None:
        told += f"; the whole network has {words.figure(held['whole'])}"
    return f'<p class="note">{escape(told[:1].upper() + told[1:])}.</p>{tables.table(rows, caption="sensitivity")}'
