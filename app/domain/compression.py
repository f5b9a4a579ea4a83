"""The kinds of job that make a network smaller: prune, share, quantize."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.domain.spec import Layers, ModelSpec, Need, Target, Training
from app.errors import Conflict

DRY_RUN = Field(False, description="answers what could be done, and what it would give; changes and trains nothing")


class PruneSpec(ModelSpec):
    """Removes weights (zeros; no speed on CPU runtimes) or channels (really gone)."""

    needs: ClassVar[Need] = "trainable"
    on_gpu: ClassVar[bool] = True
    kind: Literal["prune"] = "prune"
    method: Literal["l1_unstructured", "random_unstructured", "ln_structured", "channel", "n_m"]
    amount: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of the weights, or of the channels, that goes: of those that the version has, whatever the "
        "steps. Of every layer at least one is left. n_m: no part, n of m says it",
    )
    scope: Literal["layer", "global"] = "layer"
    layers: Layers | None = Field(None, description="names of layers; all prunable ones unless given")
    norm: float = Field(2.0, ge=0, le=10, description="n of ln_structured")
    importance: Literal["magnitude", "random", "taylor"] = Field(
        "magnitude",
        description="what goes first. taylor: what the loss minds least, |weight × gradient| over training rows "
        "(Molchanov et al. 2019), anew at every step; needs a data set",
    )
    round_to: int = Field(1, ge=1, le=256, description="channels are kept in multiples of this")
    steps: int = Field(
        1, ge=1, le=100, description="prunings, with a part of the fine-tuning after each: its epochs are those in all"
    )
    schedule: Literal["one_shot", "iterative", "gradual"] = Field(
        "iterative",
        description="of several steps. iterative: the same share of what is left goes each time; gradual: the cubic "
        "schedule of Zhu and Gupta (2017); one_shot: all at the first",
    )
    n: int = Field(2, ge=1, le=64, description="n_m: how many of m weights in a row, along the input axis, stay")
    m: int = Field(4, ge=2, le=64, description="n_m: of how many; layers whose input size it does not divide stay")
    sensitivity: bool = Field(
        False,
        description="measures accuracy against the amount, one layer at a time and without training, on up to 1,000 "
        "rows of the validation split, and says which layers are better left alone; with dry_run, that alone",
    )
    finetune: Training | None = Field(None, description="training after the pruning")
    dry_run: bool = DRY_RUN
    seed: int = Field(0, ge=0, le=2**31 - 1)

    def wants_dataset(self) -> bool:
        return not self.dry_run and (self.finetune is not None or self.sensitivity or self.importance == "taylor")

    @model_validator(mode="after")
    def _scope_fits(self) -> Self:
        if self.scope == "global" and self.method in ("ln_structured", "n_m"):
            raise ValueError(f"{self.method} works layer by layer: scope 'layer'")
        if self.n >= self.m:
            raise ValueError(f"n_m keeps n of m weights: n is {self.n}, m is {self.m}")
        if self.method == "random_unstructured" and self.importance == "taylor":
            raise ValueError("random_unstructured asks for no importance: say method 'l1_unstructured' with taylor")
        if self.method == "l1_unstructured" and self.importance == "random":
            raise ValueError("l1_unstructured takes the least important weights: method 'random_unstructured' any")
        return self


class ShareSpec(ModelSpec):
    """Shares parameters: grouped convolutions, depthwise-separable or low-rank forms of layers, palettes of weights."""

    needs: ClassVar[Need] = "trainable"
    on_gpu: ClassVar[bool] = True
    kind: Literal["share"] = "share"
    method: Literal["grouped_conv", "depthwise_separable", "low_rank", "cluster"]
    layers: Layers | None = Field(None, description="names of layers; all that it can be done to unless given")
    groups: int = Field(
        2,
        ge=2,
        le=4096,
        description="grouped_conv: how many groups; layers whose channels they do not divide stay dense",
    )
    permute: bool = Field(True, description="grouped_conv: choose which channels share a group; False: as they lie")
    solve: Literal["scale", "least_squares"] = Field(
        "least_squares",
        description="what is fitted of the weights that are left, so that a layer's outputs on training rows come near "
        "to what they were: one scale per output channel, or all of them by least squares. Needs a data set",
    )
    ranks: Literal["energy", "vbmf"] = Field(
        "energy", description="low_rank: ranks by energy, or by variational Bayes (Nakajima et al. 2013)"
    )
    energy: float = Field(0.9, gt=0, le=1, description="low_rank: share of the squared singular values that stays")
    clusters: int = Field(16, ge=2, le=256, description="cluster: different weights in a layer: its palette")
    finetune: Training | None = Field(
        None, description="training afterwards, by default with the version before as teacher"
    )
    dry_run: bool = DRY_RUN
    seed: int = Field(0, ge=0, le=2**31 - 1)

    def wants_dataset(self) -> bool:
        return not self.dry_run and self.finetune is not None


class QuantizeSpec(ModelSpec):
    """int8: calibrated after training (ptq), or trained (qat). Gives an ONNX file with Q/DQ nodes for one target."""

    needs: ClassVar[Need] = "convertible"
    on_gpu: ClassVar[bool] = True
    kind: Literal["quantize"] = "quantize"
    target: Target
    mode: Literal["ptq", "qat"] = "ptq"
    calibration_samples: int = Field(
        300, ge=1, le=100_000, description="rows of the train split, drawn with `seed`; all of them where it has fewer"
    )
    max_accuracy_drop: float | None = Field(
        None,
        ge=0,
        le=1,
        description="on the validation split, against the float version; 0.01: one point. Where int8 loses more, the "
        "layers that hurt most stay in higher precision; where nothing helps, the verdict is `rejected`",
    )
    finetune: Training | None = Field(None, description="qat: how to train; 3 epochs at lr 0.001 unless given")
    dry_run: bool = DRY_RUN
    seed: int = Field(0, ge=0, le=2**31 - 1)

    def wants_dataset(self) -> bool:
        return not self.dry_run

    @model_validator(mode="after")
    def _training_fits(self) -> Self:
        if self.finetune is not None and self.mode == "ptq":
            raise ValueError("ptq trains nothing: `finetune` goes with mode 'qat'")
        return self


_CPU: tuple[Target, ...] = ("openvino", "onnxruntime")
_GPU: tuple[Target, ...] = ("tensorrt", "tensorrt_rtx")
INT8_ENGINES: dict[str, tuple[Target, ...]] = {
    "openvino": _CPU, "onnxruntime": _CPU, "tensorrt": (*_GPU, *_CPU), "tensorrt_rtx": (*_GPU, *_CPU),
}  # fmt: skip
"""What a file that was quantized for one target can be built for. TensorRT takes zero points of 0 only; the others take
its files, too."""


def check_int8(ref: str, parent: str | None, quantized: Mapping[str, Any] | None, precision: str, target: str) -> None:
    """quantized: `details.quantized` of the version. Raises Conflict where no such engine can be built of it."""
    if precision == "int8" and not quantized:
        raise Conflict(
            f"{ref} is not quantized, and int8 engines are built from quantized networks only",
            code="not_quantized",
            hint=f"run a job of kind 'quantize' for {target} first, then convert what it makes",
        )
    if quantized and precision != "int8":
        raise Conflict(
            f"{ref} is quantized: engines of it are int8, not {precision}",
            code="already_quantized",
            hint=f'say "precision": "int8", or convert {parent or "the version it was made from"}',
        )
    if quantized and target not in INT8_ENGINES.get(str(quantized["target"]), ()):
        raise Conflict(
            f"{ref} was quantized for {quantized['target']}, and {target} does not take such scales",
            code="quantized_for_another_target",
            hint=f'quantize {parent or "the version it was made from"} with "target": "{target}"',
        )
