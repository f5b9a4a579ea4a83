"""THE MENU: one small class per kind of job, with bounds and defaults. The work itself is `workers.passes.<kind>`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter

from app.domain.compression import PruneSpec, QuantizeSpec, ShareSpec
from app.domain.spec import ImportSpec, Layers, ModelSpec, Need, Precision, Ref, Spec, Target, Training
from app.domain.tuning import OptimizeSpec, Range, SearchSpec, TrialSpec

__all__ = [
    "MENU", "NOT_SUBMITTED", "SUBMITTABLE", "AnySpec", "ConvertSpec", "EvaluateSpec", "ImportSpec", "Layers",
    "ModelSpec", "OptimizeSpec", "PlanSpec", "PruneSpec", "QuantizeSpec", "Range", "SearchSpec", "ShareSpec", "Spec",
    "TrainSpec", "Training", "TrialSpec", "parse",
]  # fmt: skip


class TrainSpec(Training, ModelSpec):
    """Fine-tunes, or trains from scratch."""

    needs: ClassVar[Need] = "trainable"
    on_gpu: ClassVar[bool] = True
    needs_dataset: ClassVar[bool] = True
    kind: Literal["train"] = "train"
    from_scratch: bool = Field(False, description="draw the weights anew before training")


class ConvertSpec(ModelSpec):
    """Builds an engine, checks its answers against the source, and measures it."""

    needs: ClassVar[Need] = "convertible"
    kind: Literal["convert"] = "convert"
    target: Target
    precision: Precision = "fp32"
    max_batch: int = Field(64, ge=1, le=4096)
    shapes: dict[str, list[int]] | None = Field(
        None, description="input name → a concrete shape to check and measure with, where dimensions are dynamic"
    )
    tolerance: float | None = Field(
        None, gt=0, description="largest |engine - source| ÷ max(1, max |source|) taken; default per precision"
    )


class EvaluateSpec(ModelSpec):
    """Accuracy with its confidence interval and latency; against a baseline, the paired difference."""

    needs_dataset: ClassVar[bool] = True
    kind: Literal["evaluate"] = "evaluate"
    baseline: Ref | None = None
    samples: int | None = Field(None, ge=2, description="rows of the test split; all unless given")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    max_accuracy_drop: float = Field(0.01, ge=0, le=1, description="against the baseline; 0.01: one point")


class PlanSpec(ModelSpec):
    """Builds an engine's plan once more, for another kind of GPU. Made by a replica that is to serve it there."""

    kind: Literal["plan"] = "plan"
    ties: dict[str, str] = Field(description="version, device …: what the plan is to be for")


AnySpec = Annotated[
    TrainSpec | PruneSpec | ShareSpec | QuantizeSpec | ConvertSpec | EvaluateSpec | SearchSpec | OptimizeSpec,
    Field(discriminator="kind"),
]
"""What POST /v1/jobs takes."""

MENU: dict[str, type[Spec]] = {
    "import": ImportSpec,
    "train": TrainSpec,
    "prune": PruneSpec,
    "share": ShareSpec,
    "quantize": QuantizeSpec,
    "convert": ConvertSpec,
    "evaluate": EvaluateSpec,
    "search": SearchSpec,
    "optimize": OptimizeSpec,
    "trial": TrialSpec,
    "plan": PlanSpec,
}
NOT_SUBMITTED = {
    "import": "POST /v1/models",
    "trial": "jobs of kind search and optimize",
    "plan": "deployments on a kind of GPU that has no plan yet",
}
"""Kinds that POST /v1/jobs does not take, and what makes them."""
SUBMITTABLE: TypeAdapter[Any] = TypeAdapter(AnySpec)


def parse(spec: dict[str, Any]) -> Spec:
    """The typed spec of a stored job. Raises KeyError for an unknown kind, pydantic.ValidationError for a bad one."""
    return MENU[spec["kind"]].model_validate(spec)
