"""What guarding a quantized network's accuracy came to: the verdict, and figures that show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app.domain.specs import QuantizeSpec
from workers.nn.leaving import Try
from workers.nn.ptq import Recipe
from workers.nn.quality import Answers, paired
from workers.nn.verdict import judge, reported

Word = Literal["accepted", "rejected", "unproven"]


@dataclass(frozen=True)
class Guarded:
    """What the guard came to. alone: node name → the error that its quantization alone makes; drops: what it costs."""

    chosen: Try
    tries: list[Try]
    alone: dict[str, float]
    drops: dict[str, float]
    recipe: Recipe


@dataclass(frozen=True)
class Judged:
    """guard: what the choice of layers came to on the validation split; told: the verdict, as a report gives it."""

    word: Word
    guard: dict[str, Any]
    told: dict[str, Any]


def verdict(
    spec: QuantizeSpec,
    guarded: Guarded,
    before: Answers,
    change: Mapping[str, Any],
    labels: Mapping[str, str],
    against: str,
    split: str,
) -> Judged | None:
    """None where no bound was asked for. change: the paired difference on a split that has chosen nothing: the verdict
    comes from it alone, but that what missed its bound on the validation split is never `accepted`."""
    bound = spec.max_accuracy_drop
    if bound is None:
        return None
    chosen, proof = guarded.chosen, judge(change, bound)
    word, told = proof.verdict, proof.told
    if chosen.drop > bound and word == "accepted":
        word = "unproven"
        told = f"Unproven: the bound was missed on the validation split. On the {split} split: {told}"
    guard = {
        "split": "val",
        "max_accuracy_drop": bound,
        "drop": chosen.drop,
        "met": chosen.drop <= bound,
        "difference": paired(chosen.found, before),
        "tries": [{"left": [labels[n] for n in t.left], "drop": t.drop} for t in guarded.tries],
    }
    return Judged(word, guard, reported(proof.told_whole() | {"verdict": word, "told": told}, against, split))


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
