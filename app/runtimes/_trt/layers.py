"""What TensorRT made of a graph, as its engine inspector tells: every layer of the plan, and what it computes in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_NAMES = {
    "float": "fp32", "float32": "fp32", "fp32": "fp32", "half": "fp16", "float16": "fp16", "fp16": "fp16",
    "bfloat16": "bf16", "bf16": "bf16", "int8": "int8", "int32": "int32", "int64": "int64", "bool": "bool",
    "fp8": "fp8", "float8": "fp8", "int4": "int4", "uint8": "uint8",
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One layer of a plan. precision: of its inputs, as fp32, fp16, bf16, int8 …; `?` where the inspector is silent."""

    name: str
    type: str
    precision: str
    tactic: str | None = None


def layers(text: str) -> list[Layer]:
    """text: the inspector's JSON with detailed verbosity; of a plan that was built with less it is names alone."""
    try:
        found = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return []
    return [_layer(entry) for entry in found]


def summary(found: Iterable[Layer]) -> dict[str, int]:
    """Precision → number of layers that compute in it. An fp16 engine that is really fp32 shows here."""
    return dict(Counter(layer.precision for layer in found).most_common())


def _layer(entry: Any) -> Layer:
    if not isinstance(entry, dict):
        return Layer(str(entry), "?", "?")
    types = [_type(tensor) for tensor in entry.get("Inputs", ()) or entry.get("Outputs", ())]
    kinds = [kind for kind in types if kind not in ("?", "bool", "int32", "int64")] or types or ["?"]
    tactic = entry.get("TacticName") or entry.get("TacticValue")
    return Layer(
        str(entry.get("Name", "?")),
        str(entry.get("ParameterType") or entry.get("LayerType") or "?"),
        kinds[0],
        str(tactic) if tactic else None,
    )


def _type(tensor: Any) -> str:
    """A tensor's `Format/Datatype` is as in `Row major linear FP16 format`; newer versions have a `Datatype` too."""
    if not isinstance(tensor, dict):
        return "?"
    said = str(tensor.get("Datatype") or tensor.get("Format/Datatype") or "")
    for word in said.replace(":", " ").lower().split():
        if word in _NAMES:
            return _NAMES[word]
    return "?"
