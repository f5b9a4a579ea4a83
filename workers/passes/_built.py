"""What a report says of how an engine was built, where its runtime has written that down beside it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_ABOUT = "build.json"
_NAMED = 20
_NARROW = ("fp16", "bf16", "int8")

Told = Mapping[str, Any]


def built(folder: Path) -> dict[str, Any]:
    """`build`: layers by the precision they compute in, each layer, what stayed in fp32 with why, which weights are
    2:4, and notes. Nothing where the runtime tells nothing."""
    path = folder / _ABOUT
    if not path.is_file():
        return {}
    about = json.loads(path.read_text())
    layers, kept, sparse = about.get("layers", []), about.get("kept_fp32", {}), about.get("sparse")
    notes = [*_of_precision(about.get("precision"), about.get("rest"), layers), *about.get("notes", [])]
    if kept:
        named = "; ".join(f"{name}: {why}" for name, why in list(kept.items())[:_NAMED])
        more = f"; and {len(kept) - _NAMED} more" if len(kept) > _NAMED else ""
        one = len(kept) == 1
        notes.append(f"{len(kept)} node{'' if one else 's'} of the graph stay{'s' * one} in fp32: {named}{more}.")
    notes += _of_sparsity(sparse) if sparse else []
    counts = dict(Counter(layer["precision"] for layer in layers).most_common())
    timed = about.get("timed_with", {})
    told = {"precisions": counts, "layers": layers, "timed_with": timed, "kept_fp32": kept, "sparse": sparse}
    return {"build": told | {"notes": notes}}


def _of_precision(asked: str | None, rest: str | None, layers: Sequence[Told]) -> list[str]:
    """Whether the engine is what was asked for. Of layers that compute no product little depends."""
    heavy = [layer for layer in layers if layer.get("products") and layer["precision"] != "?"]
    counted = heavy or [layer for layer in layers if layer["precision"] not in ("?", "bool", "int32", "int64")]
    if asked not in _NARROW or not counted:
        return []
    others = [layer for layer in counted if layer["precision"] != asked]
    done = len(counted) - len(others)
    what = "layers that compute convolutions or matrix products" if heavy else "layers"
    told = f"{done} of {len(counted)} {what} compute in {asked}"
    if 2 * done >= len(counted):
        return [f"{told}{f', the others in {rest} where they can' if rest and others else ''}."]
    named = ", ".join(f"{layer['name']} ({layer['precision']})" for layer in others[:_NAMED])
    return [f"This engine is not what was asked for: only {told}. Not: {named}."]


def _of_sparsity(sparse: Told) -> list[str]:
    fit, of = sparse["layers"], sparse["of"]
    if fit and sparse["used"]:
        return [f"{fit} of {of} layers have 2:4 weights: TensorRT may leave their zeros out, where that is faster."]
    if fit:
        return [f"{fit} of {of} layers have 2:4 weights, and kernels for those were not allowed (`sparse`)."]
    return ["No layer has 2:4 weights: kernels for those have nothing to leave out."] if sparse["used"] else []
