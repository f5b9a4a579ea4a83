"""THE MENU: one small class per kind of job, with bounds and defaults. The work itself is `workers.passes.<kind>`."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, ValidationInfo, field_validator

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


TENSORRT_OPTIONS = ("buckets", "optimization_level", "workspace_bytes", "sparse")
"""Fields of ConvertSpec that its targets tensorrt and tensorrt_rtx alone know."""


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
    buckets: list[Annotated[int, Field(ge=1, le=4096)]] | None = Field(
        None,
        min_length=1,
        max_length=16,
        description="the largest batch of each optimization profile, ascending: kernels are chosen for each range of "
        "batches by itself, and the plan grows. One profile for all unless given. tensorrt and tensorrt_rtx only",
    )
    optimization_level: int | None = Field(
        None,
        ge=0,
        le=5,
        description="how long TensorRT looks for kernels: 0 is the quickest build, 5 the most thorough; its own "
        "default unless given. tensorrt and tensorrt_rtx only",
    )
    workspace_bytes: int | None = Field(
        None,
        ge=1 << 20,
        le=1 << 40,
        description="GPU memory that a layer may use for what it computes in between: all there is unless given. "
        "tensorrt and tensorrt_rtx only",
    )
    sparse: bool | None = Field(
        None,
        description="whether kernels for 2:4 weights (two zeros in each four, as `n_m` leaves them) may be chosen; "
        "unless given: where the network has such weights. tensorrt and tensorrt_rtx only",
    )
    refit: bool = Field(
        False,
        description="builds a plan whose weights can be exchanged, and exchanges those of an earlier one of the same "
        "model instead of building where only weights have changed: seconds for minutes. TensorRT may choose slower "
        "kernels for such a plan, and 2:4 sparse weights are not exchanged. tensorrt only",
    )

    @field_validator(*TENSORRT_OPTIONS)
    @classmethod
    def _only_tensorrt_knows(cls, value: Any, info: ValidationInfo) -> Any:
        target = info.data.get("target")
        if value is not None and target not in (None, "tensorrt", "tensorrt_rtx"):
            raise ValueError(f"{info.field_name}: for targets tensorrt and tensorrt_rtx, and not for {target}")
        return value

    @field_validator("buckets")
    @classmethod
    def _buckets_ascend(cls, buckets: list[int] | None, info: ValidationInfo) -> list[int] | None:
        most = info.data.get("max_batch")
        if buckets is not None:
            if any(a >= b for a, b in pairwise(buckets)):
                raise ValueError(f"buckets ascend, and each is there once; these are {buckets}")
            if most is not None and buckets[-1] > most:
                raise ValueError(f"the last of the buckets is {buckets[-1]}, and max_batch is {most}")
        return buckets

    @field_validator("refit")
    @classmethod
    def _weights_can_be_exchanged(cls, refit: bool, info: ValidationInfo) -> bool:
        target = info.data.get("target")
        if refit and target not in (None, "tensorrt"):
            raise ValueError(f"refit goes with target tensorrt: engines of {target} keep the weights they have")
        if refit and info.data.get("precision") == "int8":
            raise ValueError("refit does not go with int8: with other weights its scales are others, too")
        return refit


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
