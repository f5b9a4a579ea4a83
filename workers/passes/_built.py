"""What a report says of how an engine was built, where its runtime has written that down beside it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

_ABOUT = "build.json"
_NAMED = 20


def built(folder: Path) -> dict[str, Any]:
    """`build`: layers by the precision they compute in, each layer, and what stayed in fp32 with why. Nothing where
    the runtime tells nothing."""
    path = folder / _ABOUT
    if not path.is_file():
        return {}
    about = json.loads(path.read_text())
    layers, kept = about.get("layers", []), about.get("kept_fp32", {})
    notes = []
    if kept:
        told = "; ".join(f"{name}: {why}" for name, why in list(kept.items())[:_NAMED])
        notes.append(f"{len(kept)} nodes stay in fp32, because fp16 could not hold their values: {told}.")
    counts = dict(Counter(layer["precision"] for layer in layers).most_common())
    return {"build": {"precisions": counts, "layers": layers, "kept_fp32": kept, "notes": notes}}
