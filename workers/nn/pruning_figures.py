"""Figures of a pruning: layers before and after, accuracy step by step."""

from __future__ import annotations

from typing import Any

Figure = dict[str, Any]


def layers(told: dict[str, Any]) -> list[Figure]:
    """Bars for every layer that was touched: its channels, or the share of its weights that is zero."""
    if channels := told.get("channels"):
        return [
            _bars("Channels of each layer", "channels", {n: (c["before"], c["after"]) for n, c in channels.items()})
        ]
    if zeros := told.get("layers"):
        values = {n: (z["sparsity_before"], z["sparsity_after"]) for n, z in zeros.items()}
        return [_bars("Zeros in each layer", "share of weights that are zero", values)]
    return []


def steps(rows: list[dict[str, Any]]) -> list[Figure]:
    """The figure on validation rows after every cut, and after the training that followed it."""
    name = next((k.split("_")[1] for row in rows for k in row if k.startswith("val_")), None)
    if name is None:
        return []
    series = []
    for when, told in (("pruned", "after the pruning"), ("tuned", "after the fine-tuning that followed")):
        points = [(row["amount"], row[key]) for row in rows if (key := f"val_{name}_{when}") in row]
        if points:
            series.append({"name": told, "x": [a for a, _ in points], "y": [v for _, v in points], "line": True})
    return [
        {
            "title": "Step by step",
            "kind": "lines",
            "x": {"label": "share that is gone"},
            "y": {"label": f"{name} on the validation split"},
            "series": series,
        }
    ]


def _bars(title: str, label: str, values: dict[str, tuple[float, float]]) -> Figure:
    names = list(values)
    return {
        "title": title,
        "kind": "bars",
        "x": {"label": "layer"},
        "y": {"label": label},
        "series": [
            {"name": when, "x": names, "y": [values[n][place] for n in names]}
            for place, when in enumerate(("before", "after"))
        ],
    }
