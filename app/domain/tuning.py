"""The kinds of job that try many things: search and optimize, and the trials that they are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from app.domain.compression import DRY_RUN
from app.domain.spec import ModelSpec, Need, Ref, Spec, Target, Training

MANY_STEPS = 1e9
# The kinds that make a version of a version; what convert makes nothing else starts from.
LINKS = ("train", "prune", "share", "quantize", "convert")
# Other names that people give a sampler.
_SAMPLERS = {"bayesian": "tpe", "bayes": "tpe"}


def _sampler(said: Any) -> Any:
    return _SAMPLERS.get(said, said) if isinstance(said, str) else said


_named = BeforeValidator(_sampler)
_SAMPLER_TOLD = "`bayesian` is understood as tpe"
Sampler = Annotated[Literal["grid", "random", "tpe", "gp", "nsga2"], _named]


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


def _usual_form(given: Any) -> Any:
    """What `choices` or `values` stands before is a list; `min` and `max` are bounds."""
    if not isinstance(given, Mapping):
        return given
    for name in ("choices", "values"):
        if set(given) in ({name}, {name, "type"}) and given.get("type", "categorical") == "categorical":
            return given[name]
    bounds = {"min": "low", "max": "high"}
    if not set(bounds) & set(given) or set(bounds.values()) & set(given):
        return given
    return {bounds.get(name, name): value for name, value in given.items()}


Choices = Annotated[list[Any], Field(min_length=1, max_length=10_000)]
# Told apart before either is looked at: what is wrong is then said of what was meant.
Dimension = Annotated[
    Annotated[Choices, Tag("choices")] | Annotated[Range, Tag("range")],
    Discriminator(lambda given: "range" if isinstance(given, dict | Range) else "choices"),
    BeforeValidator(_usual_form),
]


def chain_named_by(keys: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The chain whose links the keys of a space name: in the order in which they first appear, or by their numbers.
    None where that is no chain: a key that names no link, or links of which some are numbered and others not."""
    numbered: dict[int, str] = {}
    plain: list[str] = []
    for key in keys:
        steps = str(key).split(".")
        number = int(steps.pop(0)) if steps[0].isdecimal() and len(steps[0]) <= 4 else None
        if len(steps) < 2 or steps[0] not in LINKS:
            return None
        if number is None:
            plain.append(steps[0])
        elif numbered.setdefault(number, steps[0]) != steps[0]:
            return None
    if numbered and (plain or set(numbered) != set(range(len(numbered)))):
        return None
    kinds = [numbered[n] for n in sorted(numbered)] or list(dict.fromkeys(plain))
    return [{"kind": kind} for kind in kinds] or None


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
        description="specs without model and dataset, each working on what the one before gave. Left out, it is of the "
        "kinds that the keys of `space` name, in their order, each with its defaults",
    )
    estimator: str | None = Field(None, description="of scikit-learn: random_forest, …; see GET /v1/jobs/kinds")
    params: dict[str, Any] = Field({}, description="of the estimator: those that are not searched")
    cv: int = Field(3, ge=2, le=50, description="folds of the training split, as scikit-learn makes them")
    space: dict[str, Dimension] = Field(
        min_length=1,
        max_length=100,
        description="`train.lr`, or `1.train.lr` when a kind repeats; of an estimator plain names. "
        "A list of choices (or `choices` or `values` with one), or a range (`min` and `max` are understood, too)",
    )
    sampler: Sampler = Field("tpe", description=_SAMPLER_TOLD)
    trials: int | None = Field(
        None, ge=1, le=100_000, description="grid: all of the grid unless given, and never more; else 20"
    )
    parallel: int = Field(4, ge=1, le=256, description="trials at a time")
    objectives: list[str | Aim] = Field(
        ["quality"],
        min_length=1,
        max_length=5,
        description="quality (accuracy or r2, on the validation split), loss, latency, throughput, parameters, macs, "
        "size, sparsity; several give a Pareto front, and the first of them chooses from it. `objective` with one is "
        "understood, too",
    )
    pruner: Literal["none", "median", "asha", "hyperband", "halving"] = Field(
        "none",
        description="ends trials early that lag behind, by the validation figure of each epoch; halving: of an "
        "estimator, rounds with more and more rows for fewer and fewer candidates",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1)

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        said = dict(given)
        if "objectives" not in said and isinstance(said.get("objective"), str | Mapping):
            said["objectives"] = [said.pop("objective")]
        if said.get("chain") is None and said.get("estimator") is None and isinstance(said.get("space"), Mapping):
            said["chain"] = chain_named_by(said["space"])
        return said

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.chain is None) == (self.estimator is None):
            raise ValueError(
                "say either `chain`, a list of job specs, or `estimator`, the name of one of scikit-learn's; a `chain` "
                "can be left out where every key of `space` names its link, as in `train.lr`"
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
        None,
        ge=1,
        le=4096,
        description="rows that speed is measured with, at most `max_batch`; 1 for latency, 32 for throughput. Of a "
        "model that takes one row at a time always 1",
    )
    max_accuracy_drop: float = Field(0.01, ge=0, le=1, description="0.01: one point")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    trials: int = Field(12, ge=1, le=10_000)
    parallel: int = Field(1, ge=1, le=64)
    passes: list[Literal["prune", "share", "quantize"]] = Field(["prune", "quantize"], max_length=3)
    sampler: Annotated[Literal["random", "tpe", "nsga2"], _named] = Field("tpe", description=_SAMPLER_TOLD)
    finetune: Training | None = Field(None, description="of every candidate that lost weights, and of the baseline")
    time_limit_s: float | None = Field(
        None,
        gt=0,
        description="no design is begun after this. Seconds in which at least one trial of the job runs count, from "
        "the start of its first; time in a queue, or with no worker alive, does not",
    )
    max_batch: int = Field(64, ge=1, le=4096, description="of the engines; at least `batch`")
    dry_run: bool = DRY_RUN
    seed: int = Field(0, ge=0, le=2**31 - 1)

    @model_validator(mode="before")
    @classmethod
    def _takes_the_batch(cls, given: Any) -> Any:
        """Who asks for speed with more rows than engines usually take wants engines that take them."""
        usual = int(cls.model_fields["max_batch"].default)
        if isinstance(given, Mapping) and "max_batch" not in given and isinstance(batch := given.get("batch"), int):
            return {**given, "max_batch": batch} if usual < batch <= 4096 else given
        return given

    @model_validator(mode="after")
    def _batch_fits(self) -> Self:
        if self.batch is not None and self.batch > self.max_batch:
            raise ValueError(f"`batch` is {self.batch}, and the engines would take `max_batch` {self.max_batch} rows")
        return self

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
