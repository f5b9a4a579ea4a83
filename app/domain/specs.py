"""THE MENU: one small class per kind of job, with bounds and defaults. The work itself is `workers.passes.<kind>`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

Ref = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}(@[1-9][0-9]{0,8})?$", examples=["digits@1"])]
Layers = Annotated[list[str], Field(min_length=1, max_length=10_000)]
Need = Literal["trainable", "convertible", "any", "none"]


class Spec(BaseModel):
    """What a job is asked to do.

    needs: which versions of a model this kind can start from. on_gpu: whether a worker with a GPU is worth waiting for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    needs: ClassVar[Need] = "any"
    on_gpu: ClassVar[bool] = False
    needs_dataset: ClassVar[bool] = False

    def wants_dataset(self) -> bool:
        """Whether this very spec cannot run without a data set."""
        return self.needs_dataset


class ModelSpec(Spec):
    model: Ref = Field(description="`name@3`, or `name` for the newest version that this kind of job can use")
    dataset: Ref | None = Field(None, description="measures accuracy on its test split; trains on its train split")


class ImportSpec(Spec):
    """Loads an uploaded checkpoint safely and publishes it as a version. Made by POST /v1/models."""

    needs: ClassVar[Need] = "none"
    kind: Literal["import"] = "import"
    name: str
    upload: str = Field(description="the staged object")
    filename: str
    sha256: str
    bytes: int
    architecture: dict[str, Any] | None = None
    signature: dict[str, Any] | None = None
    task: str | None = None
    labels: list[str] | None = None
    preprocess: dict[str, Any] | None = None


class Training(Spec):
    """How to train: stochastic gradient descent over epochs of shuffled batches."""

    epochs: int = Field(10, ge=1, le=10_000)
    batch_size: int = Field(64, ge=1, le=65_536)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(0.05, gt=0, le=100, description="the peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD; beta1 of Adam")
    weight_decay: float = Field(0.0, ge=0, le=1)
    schedule: Literal["onecycle", "cosine", "constant", "step"] = "onecycle"
    loss: Literal["auto", "cross_entropy", "mse"] = Field(
        "auto", description="auto: cross entropy for classes, else MSE"
    )
    amp: Literal["auto", "off", "bf16"] = Field("auto", description="bf16 autocast; auto: on a GPU only")
    early_stopping: int | None = Field(
        None, ge=1, description="epochs without a better validation figure before it ends"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1)


class TrainSpec(Training, ModelSpec):
    """Fine-tunes, or trains from scratch."""

    needs: ClassVar[Need] = "trainable"
    on_gpu: ClassVar[bool] = True
    needs_dataset: ClassVar[bool] = True
    kind: Literal["train"] = "train"
    from_scratch: bool = Field(False, description="draw the weights anew before training")


class PruneSpec(ModelSpec):
    """Removes weights (zeros; no speed on CPU runtimes) or channels (really gone)."""

    needs: ClassVar[Need] = "trainable"
    on_gpu: ClassVar[bool] = True
    kind: Literal["prune"] = "prune"
    method: Literal["l1_unstructured", "random_unstructured", "ln_structured", "channel"]
    amount: float = Field(0.5, gt=0, lt=1, description="share of the weights, or of the channels, that goes")
    scope: Literal["layer", "global"] = "layer"
    layers: Layers | None = Field(None, description="names of layers; all prunable ones unless given")
    norm: float = Field(2.0, ge=0, le=10, description="n of ln_structured")
    importance: Literal["magnitude", "random"] = "magnitude"
    round_to: int = Field(1, ge=1, le=256, description="channels are kept in multiples of this")
    finetune: Training | None = Field(None, description="training after the pruning")
    seed: int = Field(0, ge=0, le=2**31 - 1)

    def wants_dataset(self) -> bool:
        return self.finetune is not None

    @model_validator(mode="after")
    def _scope_fits(self) -> Self:
        if self.scope == "global" and self.method == "ln_structured":
            raise ValueError("ln_structured works layer by layer: scope 'layer'")
        return self


class ConvertSpec(ModelSpec):
    """Builds an engine, checks its answers against the source, and measures it."""

    needs: ClassVar[Need] = "convertible"
    kind: Literal["convert"] = "convert"
    target: Literal["openvino", "onnxruntime", "tensorrt", "tensorrt_rtx"]
    precision: Literal["fp32", "tf32", "fp16", "bf16", "int8"] = "fp32"
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


AnySpec = Annotated[TrainSpec | PruneSpec | ConvertSpec | EvaluateSpec, Field(discriminator="kind")]
"""What POST /v1/jobs takes."""

MENU: dict[str, type[Spec]] = {
    "import": ImportSpec,
    "train": TrainSpec,
    "prune": PruneSpec,
    "convert": ConvertSpec,
    "evaluate": EvaluateSpec,
}
SUBMITTABLE: TypeAdapter[Any] = TypeAdapter(AnySpec)


def parse(spec: dict[str, Any]) -> Spec:
    """The typed spec of a stored job. Raises KeyError for an unknown kind, pydantic.ValidationError for a bad one."""
    return MENU[spec["kind"]].model_validate(spec)
