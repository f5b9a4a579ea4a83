"""What guarding a quantized network's accuracy came to: the verdict, and figures that show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app.domain.specs import QuantizeSpec
from workers.nn.leaving import Try
from workers.nn.ptq import Recipe
from workers.nn.quality import Answers, paired
from workers.nn.verdict import judge


@dataclass(frozen=True)
class Guarded:
    """What the guard came to. alone: node name → the error that its quantization alone makes; drops: what it costs."""

    chosen: Try
    tries: list[Try]
    alone: dict[str, float]
    drops: dict[str, float]
    recipe: Recipe


def verdict(
    spec: QuantizeSpec, guarded: Guarded, before: Answers, labels: Mapping[str, str]
) -> tuple[Literal["accepted", "rejected"] | None, dict[str, Any] | None]:
    """rejected: the bound was not met on the validation split; accepted: the whole interval lies within it; else none:
    what was asked for holds, and an engine gets a verdict of its own."""
    bound = spec.max_accuracy_drop
    if bound is None:
        return None, None
    chosen = guarded.chosen
    found = judge(paired(chosen.found, before), bound)
    guard = {
        "split": "val",
        "max_accuracy_drop": bound,
        "drop": chosen.drop,
        "met": chosen.drop <= bound,
        "difference": dict(found.difference),
        "told": found.told,
        "tries": [{"left": [labels[n] for n in t.left], "drop": t.drop} for t in guarded.tries],
    }
    if chosen.drop > bound:
        return "rejected", guard
    return ("accepted" if found.verdict == "accepted" else None), guard


def figures(
    labels: Mapping[str, str], guarded: Guarded, then: Answers, now: Answers, split: str
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {
            "title": f"{then.name.capitalize()} before and after",
            "kind": "bars",
            "x": {"label": "network"},
            "y": {"label": f"{then.name} on the {split} split"},
            "series": [{"name": then.name, "x": ["float", "int8"], "y": [then.value(), now.value()]}],
        }
    ]
    if guarded.alone:
        names = list(guarded.alone)[:40]
        found.append(
            {
                "title": "What quantizing a layer alone does",
                "kind": "bars",
                "x": {"label": "layer"},
                "y": {"label": "relative error of the outputs"},
                "series": [
                    {
                        "name": "error",
                        "x": [labels[n] for n in names],
                        "y": [guarded.alone[n] for n in names],
                    }
                ],
                "note": f"Left in higher precision: {len(guarded.chosen.left)} of {len(guarded.alone)}.",
            }
        )
    return found
