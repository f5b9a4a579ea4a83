"""What convert finds out about an int8 engine besides: whether it is one, and what it lost against the float parent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from app.domain.records import Version
from app.domain.specs import ConvertSpec
from app.errors import NotFound, Unprocessable
from app.runtimes import Engine
from workers.context import Context
from workers.nn.data import Data
from workers.nn.executed import executed
from workers.nn.predict import sensible_batch
from workers.nn.quality import Answers, answers, paired, quality
from workers.nn.teacher import open_teacher
from workers.nn.verdict import judge

Verdict = Literal["accepted", "rejected", "unproven"]


@dataclass(frozen=True)
class Int8:
    """layers: layer → the precision it is computed in, where the runtime tells. parent, change: the float parent's
    quality on the same rows, and the paired difference. quantized: what `details.quantized` of the source says."""

    quantized: dict[str, Any]
    layers: dict[str, str] | None
    parent: dict[str, Any] | None
    change: dict[str, Any] | None
    verdict: Verdict | None
    notes: list[str]

    @classmethod
    def of(
        cls,
        spec: ConvertSpec,
        version: Version,
        engine: Engine,
        folder: Path,
        data: Data | None,
        found: Answers | None,
        ctx: Context,
    ) -> Int8:
        """Raises Unprocessable where not one layer of the engine is computed in int8."""
        quantized, notes = dict(version.details["quantized"]), []
        names = quantized.pop("names", {})
        layers = executed(spec.target, engine, folder, ctx.scratch)
        if layers is not None:  # called as quantize called them
            layers = {names.get(n) or names.get(n.partition("/")[0], n): at for n, at in layers.items()}
        if layers is None:
            notes.append(f"{spec.target} does not tell which layers it computes in int8.")
        elif layers and "int8" not in layers.values():
            raise Unprocessable(
                f"{spec.target} computes no layer of this network in int8, though {quantized['int8_layers']} are "
                "quantized in the file",
                code="not_int8",
                hint="the CPU, or the runtime's kernels, lack what they need: convert the float version",
            )
        else:
            kept = {name: precision for name, precision in layers.items() if precision != "int8"}
            told = ", ".join(f"{name} ({precision})" for name, precision in list(kept.items())[:20])
            notes.append(f"{len(layers) - len(kept)} of {len(layers)} layers are computed in int8" + (
                f"; not: {told}." if kept else "."
            ))  # fmt: skip
        if quantized["target"] != spec.target:
            notes.append(
                f"The scales were placed for {quantized['target']}: {spec.target} takes them, too, perhaps not as fast."
            )
        parent, change = _against_parent(version, data, found, ctx, notes)
        return cls(quantized, layers, parent, change, _verdict(quantized, change), notes)

    def add_to(self, draft: dict[str, Any], report: dict[str, Any]) -> None:
        """Says it in the version and in the report."""
        draft["details"] = draft["details"] | {"quantized": self.quantized}
        draft["verdict"] = self.verdict
        report |= {
            "layers": self.layers,
            "quantized": self.quantized,
            "parent_quality": self.parent,
            "quality_change": self.change,
            "notes": [*report["notes"], *self.notes],
        }


def _against_parent(
    version: Version, data: Data | None, found: Answers | None, ctx: Context, notes: list[str]
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    if data is None or found is None or version.parent is None:
        return None, None
    ctx.progress(0, None, phase="measuring the float version")
    try:
        parent = open_teacher(version.parent, data, ctx)
    except NotFound:
        notes.append(f"{version.parent}, which was quantized, is gone: there is nothing to compare with.")
        return None, None
    try:
        rows = data.split(ctx.split)
        theirs = answers(
            lambda x: np.asarray(parent.ask(x).cpu().numpy()), rows, sensible_batch(rows.x.shape[1:], parent.at_once)
        )
    finally:
        parent.close()
    return quality(theirs, data.ref, ctx.split).model_dump(mode="json"), paired(found, theirs)


def _verdict(quantized: dict[str, Any], change: dict[str, Any] | None) -> Verdict | None:
    """Where quantize was given a bound, an engine beyond it needs `force` to be deployed; so does one of a version that
    missed it on the validation split, whatever other rows say."""
    bound = quantized.get("max_accuracy_drop")
    if bound is None:
        return None
    found = judge(change, bound).verdict if change is not None else None
    if quantized["drop"] > bound:
        return "rejected" if found in (None, "rejected") else "unproven"
    return found
