"""A design: one way to make a version faster, and the chain of specs that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.domain.specs import OptimizeSpec, Training
from app.runtimes import _cpu

# For a candidate that lost weights: enough to recover, little enough for many candidates.
USUAL_TRAINING = Training(epochs=4, batch_size=128, lr=0.02, weight_decay=1e-4, schedule="onecycle", alpha=0.5)
CALIBRATION = 300
# Accuracy is measured on the engine itself, so a step of its 8 bits may be seen in an output; what is broken may not.
INT8_TOLERANCE = 0.5
# Multiply-adds of a row from which bfloat16 makes a step of training shorter on a CPU that has it: a ResNet-20 for
# 32×32 pictures (41 million) took 0.6 times as long, a LeNet (half a million) 1.08 times.
BF16_MACS = 2_000_000


@dataclass(frozen=True)
class Design:
    """target, precision: of the engine; int8 quantizes first. tuned: starts from a fine-tuning of the whole network.
    prune, share: fields of those specs, or None."""

    target: str
    precision: str
    tuned: bool = False
    prune: Mapping[str, Any] | None = None
    share: Mapping[str, Any] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        return self.tuned or self.prune is not None or self.share is not None

    def told(self) -> str:
        """In words: `up to 50 % of the channels less, per layer · int8 · openvino`. Fewer go where a layer's number is
        rounded."""
        parts = ["fine-tuned"] if self.tuned else []
        if self.prune is not None:
            how = "globally" if self.prune.get("scope") == "global" else "per layer"
            parts.append(f"up to {100 * float(self.prune['amount']):.0f} % of the channels less, {how}")
        if self.share is not None:
            groups = f" in {self.share['groups']} groups" if "groups" in self.share else ""
            parts.append(f"{str(self.share['method']).replace('_', ' ')}{groups}")
        return " · ".join([*(parts or ["as it is"]), self.precision, self.target])


def chain(design: Design, spec: OptimizeSpec, training: dict[str, Any]) -> list[dict[str, Any]]:
    """The specs that make it from spec.model. training: as `training_of` gives it."""
    links: list[dict[str, Any]] = []
    if design.tuned:
        links.append({"kind": "train", **training})
    last = "share" if design.share is not None else "prune"
    for kind, fields in (("prune", design.prune), ("share", design.share)):
        if fields is not None:
            links.append({"kind": kind, **fields} | ({"finetune": training} if kind == last else {}))
    if design.precision == "int8":
        links.append(
            {"kind": "quantize", "target": design.target, "calibration_samples": CALIBRATION, "seed": spec.seed}
        )
    links.append(
        {"kind": "convert", "target": design.target, "precision": design.precision, "max_batch": spec.max_batch}
        | ({"tolerance": INT8_TOLERANCE} if design.precision == "int8" else {})
    )
    return links


def training_of(spec: OptimizeSpec, macs: int | None) -> dict[str, Any]:
    """The fields of every fine-tuning, the baseline's and the candidates': equal data, equal budget, and one teacher,
    the original."""
    given = spec.finetune or USUAL_TRAINING.model_copy(update={"seed": spec.seed})
    fields = given.model_dump(mode="json") | {"teacher": given.teacher or spec.model}
    if given.amp == "auto" and (macs or 0) >= BF16_MACS and _cpu.has_bf16():
        fields["amp"] = "bf16"
    return fields
