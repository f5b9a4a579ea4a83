"""What every spec has: who it starts from, what it needs, and the ways to say how to train."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Ref = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}(@[1-9][0-9]{0,8})?$", examples=["digits@1"])]
Layers = Annotated[list[str], Field(min_length=1, max_length=10_000)]
Need = Literal["trainable", "convertible", "any", "none"]
Target = Literal["openvino", "onnxruntime", "tensorrt", "tensorrt_rtx"]
Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8"]


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

    def teachers(self) -> list[str]:
        """The refs that this spec names as teachers, its own and those of what it nests."""
        nested = [getattr(self, name) for name in type(self).model_fields]
        own = [self.teacher] if isinstance(self, Training) and self.teacher else []
        return own + [ref for part in nested if isinstance(part, Spec) for ref in part.teachers()]


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
    """How to train: stochastic gradient descent over epochs of shuffled batches, beside a teacher if one is named."""

    epochs: int = Field(10, ge=1, le=10_000)
    batch_size: int = Field(64, ge=1, le=65_536)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(0.05, gt=0, le=100, description="the peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD; beta1 of Adam")
    weight_decay: float = Field(0.0, ge=0, le=1)
    clip_norm: float | None = Field(
        None,
        gt=0,
        description="the largest norm that the gradients of a step may have together. Unless given: 1 where classes "
        "are learnt from a teacher, or after prune, share or quantize; else none",
    )
    schedule: Literal["onecycle", "cosine", "constant", "step"] = "onecycle"
    loss: Literal["auto", "cross_entropy", "mse"] = Field(
        "auto", description="auto: cross entropy for classes, else MSE"
    )
    amp: Literal["auto", "off", "bf16"] = Field(
        "auto",
        description="bf16 autocast; auto: on a GPU only. On a CPU with bf16 instructions (avx512_bf16, amx) that has "
        "little else to do, `bf16` takes about 0.6 of the time for networks of convolutions such as ResNet-20",
    )
    augment: Literal["none", "flip_crop"] = Field(
        "none",
        description="of pictures: flip_crop mirrors half of them and moves each by up to an eighth of its side; "
        "not where left and right differ in meaning, as in digits",
    )
    early_stopping: int | None = Field(
        None,
        ge=1,
        description="epochs without a better validation figure before it ends; the best weights are kept. After prune, "
        "share or quantize those from before the first epoch are among them",
    )
    teacher: Ref | None = Field(
        None,
        description="a version of the same outputs whose answers are learnt too (knowledge distillation). A "
        "fine-tuning after prune, share or quantize learns from the version it came from unless another is named",
    )
    temperature: float = Field(4.0, gt=0, le=1000, description="softens both distributions (Hinton et al. 2015)")
    alpha: float = Field(0.5, ge=0, le=1, description="the teacher's share of the loss; 0: no distillation")
    seed: int = Field(0, ge=0, le=2**31 - 1)
