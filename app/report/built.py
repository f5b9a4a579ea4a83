"""How an engine was built: what its layers compute in and how long they take, and what stayed in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from app.report import tables, words

Told = Mapping[str, Any]
FIELDS = frozenset(("build",))
MOST_OPEN = 30


def section(report: Told) -> str:
    """Of a convert job whose runtime tells it; nothing for what is no such table."""
    given = report.get("build")
    if not isinstance(given, Mapping):
        return ""
    layers = [row for row in _list(given.get("layers")) if isinstance(row, Mapping)]
    kept = given.get("kept_fp32")
    parts = [_precisions(layers), _layers(layers, given.get("timed_with"))]
    if isinstance(kept, Mapping) and kept:
        rows = [{"node": name, "why": why} for name, why in kept.items()]
        parts.append(_folded("Nodes of the graph that stay in fp32", len(rows), tables.table(rows, caption="in fp32")))
    return "".join(parts)


def _precisions(layers: list[Told]) -> str:
    """One row for each precision: how many layers, and how much of the time."""
    found: dict[str, list[Told]] = {}
    for layer in layers:
        found.setdefault(str(layer.get("precision")), []).append(layer)
    whole = sum(map(_ms, layers))
    rows = [
        {
            "computed in": precision,
            "layers": len(some),
            "of these with products": sum(1 for layer in some if layer.get("products")),
            "share of the time": f"{100 * sum(map(_ms, some)) / whole:.1f} %" if whole else None,
        }
        for precision, some in sorted(found.items(), key=lambda item: -len(item[1]))
    ]
    return tables.table(rows, caption="layers by precision") if rows else ""


def _layers(layers: list[Told], timed_with: Any) -> str:
    if not layers:
        return ""
    whole = sum(map(_ms, layers))
    rows = [
        {
            "layer": layer.get("name"),
            "computes": ", ".join(map(str, _list(layer.get("products")))) or layer.get("type"),
            "computed in": layer.get("precision"),
            "ms": layer.get("ms"),
            "share of the time": f"{100 * _ms(layer) / whole:.1f} %" if whole else None,
            "kernel": layer.get("tactic"),
        }
        for layer in layers
    ]
    note = ""
    if whole and isinstance(timed_with, Mapping):
        shapes = ", ".join(f"{name} {list(_list(shape))}" for name, shape in timed_with.items())
        told = f"Timed one by one with {shapes}: {words.figure(whole)} ms in all, more than a run takes unwatched."
        note = f'<p class="note">{escape(told)}</p>'
    return _folded("Layers of the engine", len(rows), note + tables.table(rows, caption="layers of the engine"))


def _folded(title: str, count: int, inside: str) -> str:
    if count > MOST_OPEN:
        return f"<details><summary>{title} ({count})</summary>{inside}</details>"
    return f"<h3>{title}</h3>{inside}"


def _ms(layer: Told) -> float:
    ms = layer.get("ms")
    return float(ms) if isinstance(ms, int | float) and not isinstance(ms, bool) else 0.0


def _list(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else []
