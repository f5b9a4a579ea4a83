"""The kinds of job that try many things: search and optimize, and the trials that they are made of."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from app.domain.compression import DRY_RUN
from app.domain.spec import ModelSpec, Need, Ref, Spec, Target, Training

MANY_STEPS = 1e9
Sampler = Literal["grid", "random", "tpe", "gp", "nsga2"]


class Range(Spec):
    """Numbers from low to high, both included. log: drawn evenly over orders of magnitude. step: only low + k·step."""

    low: float
    high: float
    log: bool = False
    step: float | None = Field(None, gt=0)
    type: Literal["float", "int"] | None = Field(
        None, description="unless given: int where low, high and step are whole and the field takes whole numbers alone"
    )

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low:g} and high is {self.high:g}: contradictory bounds")
        if not math.isfinite((self.high - self.low) / (self.step or 1)) or (
            self.step is not None and (self.high - self.low) / self.step > MANY_STEPS
        ):
            raise ValueError(
                f"from {self.low:g} to {self.high:g} there are more than {MANY_STEPS:g} steps: leave out `step`"
            )
        if self.type == "int" and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"whole numbers lie between whole bounds, not between {self.low:g} and {self.high:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a logarithmic range starts above 0 and has no step")
        return self


class Aim(Spec):
    """One thing to make better. Every figure has a direction of its own; this is for the other one."""

    metric: str = Field(description="quality, accuracy, r2, loss, latency_ms, throughput, parameters, macs, bytes, …")
    direction: Literal["maximize", "minimize"] | None = None


Choices = Annotated[list[Any], Field(min_length=1, max_length=10_000)]
# Told apart before either is looked at: what is wrong is then said of what was meant.
Dimension = Annotated[
    Annotated[Choices, Tag("choices")] | Annotated[Range, Tag("range")],
    Discriminator(lambda given: "range" if isinstance(given, dict | Range) else "choices"),
]


class SearchSpec(Spec):
    """Hyper-parameters of a chain of jobs, or of a scikit-learn estimator, by grid, random or Bayesian search."""

    needs: ClassVar[Need] = "any"
    needs_dataset: ClassVar[bool] = True
    kind: Literal["search"] = "search"
    model: Ref | None = Field(None, description="what the chain starts from; with `estimator`: the name of the winner")
    dataset: Ref | None = None
    chain: list[dict[str, Any]] | None = Field(
        None,
        min_length=1,
        max_length=20,
        description="specs without model and dataset, each working on what the one before gave",
    )
    estimator: str | None = Field(None, description="of scikit-learn: random_forest, …; see GET /v1/jobs/kinds")
    params: dict[str, Any] = Field({}, description="of the estimator: those that are not searched")
    cv: int = Field(3, ge=2, le=50, description="folds of the training split, as scikit-learn makes them")
    space: dict[str, Dimension] = Field(
        min_length=1,
        max_length=100,
        description="`train.lr`, or `1.train.lr` when a kind repeats; of an estimator plain names. "
        "A list of choices, or a range",
    )
    sampler: Sampler = "tpe"
    trials: int | None = Field(
        None, ge=1, le=100_000, description="grid: all of the grid unless given, and never more; else 20"
    )
    parallel: int = Field(4, ge=1, le=256, description="trials at a time")
    objectives: list[str | Aim] = Field(
        ["quality"],
        min_length=1,
        max_length=5,
        description="quality (accuracy or r2, on the validation split), loss, latency, throughput, parameters, macs, "
        "size, sparsity; several give a Pareto front, and the first of them chooses from it",
    )
    pruner: Literal["none", "median", "asha", "hyperband", "halving"] = Field(
        "none",
        description="ends trials early that lag behind, by the validation figure of each epoch; halving: of an "
        "estimator, rounds with more and more rows for fewer and fewer candidates",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.chain is None) == (self.estimator is None):
            raise ValueError(
                "say either `chain`, a list of job specs, or `estimator`, the name of one of scikit-learn's"
            )
        if self.chain is not None and self.model is None:
            raise ValueError("`model` is what the chain starts from")
        return self


class OptimizeSpec(ModelSpec):
    """The closed loop: the fastest version that is proven to keep its accuracy, and the Pareto front beside it."""

    needs: ClassVar[Need] = "convertible"
    on_gpu: ClassVar[bool] = True
    needs_dataset: ClassVar[bool] = True
    kind: Literal["optimize"] = "optimize"
    targets: list[Target] = Field(["openvino"], min_length=1, max_length=4)
    objective: Literal["latency", "throughput", "size"] = "latency"
    batch: int | None = Field(
        None, ge=1, le=4096, description="rows that speed is measured with; 1 for latency, 32 for throughput"
    )
    max_accuracy_drop: float = Field(0.01, ge=0, le=1, description="0.01: one point")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    trials: int = Field(12, ge=1, le=10_000)
    parallel: int = Field(1, ge=1, le=64)
    passes: list[Literal["prune", "share", "quantize"]] = Field(["prune", "quantize"], max_length=3)
    sampler: Literal["random", "tpe", "nsga2"] = "tpe"
    finetune: Training | None = Field(None, description="of every candidate that lost weights, and of the baseline")
    time_limit_s: float | None = Field(None, gt=0, description="no candidate is begun after this")
    max_batch: int = Field(64, ge=1, le=4096, description="of the engines")
    dry_run: bool = DRY_RUN
    seed: int = Field(0, ge=0, le=2**31 - 1)

    @model_validator(mode="after")
    def _targets_differ(self) -> Self:
        if len(set(self.targets)) < len(self.targets):
            raise ValueError("`targets` names one twice")
        if len(set(self.passes)) < len(self.passes):
            raise ValueError("`passes` names one twice")
        return self


class TrialSpec(Spec):
    """One try of a search or an optimize job, which makes it. It publishes no version: what it found is kept under the
    hash of all that it depends on."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    needs: ClassVar[Need] = "any"
    kind: Literal["trial"] = "trial"
    model: Ref | None = None
    dataset: Ref | None = None
    role: str = Field(description="what is tried: `chain`, `estimator`, …: a function of workers.trials")
    number: int = Field(0, ge=0)
    seed: int = Field(0, ge=0, le=2**31 - 1)
