"""Post-training quantization through NNCF: a float ONNX graph and rows to calibrate with → a graph with Q/DQ nodes."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import onnx

from app.errors import Problem, Unprocessable
from app.runtimes import _libraries
from workers.nn import qdq, suited
from workers.nn.requests import Request


class Rows(Protocol):
    """Inputs by name, in as many requests as its length says; gone through more than once."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Request]: ...


# Whose kernels know one kind of zero point only: 0, of int8.
SYMMETRIC = ("tensorrt", "tensorrt_rtx")


@dataclass(frozen=True)
class Recipe:
    """How NNCF is to do it. correct: shifts every bias by the mean error that quantizing makes (fast bias correction).
    smooth: moves outliers of activations into the weights before (SmoothQuant, Xiao et al. 2022). mixed: asymmetric
    activations where they go below zero.

    Ranges come from histograms, so that the squared error is least: measured on CIFAR networks, the outputs are half
    as far from the float network's as with NNCF's usual mean of every row's extremes.
    """

    correct: bool = False
    smooth: bool = False
    mixed: bool = False

    @property
    def told(self) -> str:
        words = ["asymmetric activations" if self.mixed else "symmetric activations"]
        words += ["SmoothQuant"] * self.smooth + ["bias correction"] * self.correct
        return ", ".join(words)


def recipes(model: Any) -> list[Recipe]:
    """Those worth trying on a network of this kind. Which is best is measured."""
    found = [Recipe()]
    if qdq.has_narrow_layers(model):
        found.append(Recipe(correct=True))
    if qdq.uses_attention(model):
        found.append(Recipe(smooth=True))
    return found


def further(recipe: Recipe, target: str) -> list[Recipe]:
    """Those to try where a network loses too much with the one found best."""
    found = [replace(recipe, correct=True)] if not recipe.correct else []
    return found if target in SYMMETRIC else [replace(recipe, mixed=True), *found]


def quantize(model: Any, rows: Rows, target: str, recipe: Recipe, threads: int, leave: Collection[str] = ()) -> Any:
    """The graph with Q/DQ nodes: int8 weights with a scale per channel, activations with one per tensor.

    model: what `qdq.opened` gave; it is left as it is. rows: inputs by name, of one row or a few each. leave: names
    of nodes that stay in float. Raises Unprocessable where NNCF refuses the graph, or nothing of it can be quantized.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with _quiet_nncf() as nncf, _threads(threads):
        ranges = importlib.import_module("nncf.quantization.range_estimator").RangeEstimatorParametersSet
        parameters = importlib.import_module("nncf.quantization.advanced_parameters").QuantizationParameters
        advanced = nncf.AdvancedQuantizationParameters(
            disable_bias_correction=not recipe.correct,
            activations_range_estimator_params=ranges.HISTOGRAM,
            # Before a depthwise convolution NNCF would take a scale per channel, which ONNX Runtime refuses to run.
            activations_quantization_params=parameters(per_channel=False),
        )
        try:
            found = nncf.quantize(
                copy,
                nncf.Dataset(rows),
                preset=nncf.QuantizationPreset.MIXED if recipe.mixed else nncf.QuantizationPreset.PERFORMANCE,
                target_device=nncf.TargetDevice.CPU,
                subset_size=len(rows),
                model_type=nncf.ModelType.TRANSFORMER if recipe.smooth else None,
                ignored_scope=nncf.IgnoredScope(names=sorted(leave), validate=False) if leave else None,
                advanced_parameters=advanced,
            )
        except Problem:
            raise
        except Exception as error:  # NNCF, onnx and ONNX Runtime raise dozens of kinds
            text = " ".join(str(error).split())[:400]
            raise Unprocessable(
                f"this network cannot be quantized: {text or type(error).__name__}",
                code="not_quantizable",
                hint="convert it in bf16 or fp16 instead, where the target has those",
            ) from error
    if target in SYMMETRIC:
        suited.symmetric(found)
    else:
        suited.unsigned(found)
    suited.kept_axes(found)
    qdq.tidied(found)
    _check(found)
    return found


def _check(model: Any) -> None:
    """Raises Unprocessable for scales that are no scales: the rows told nothing about the tensors."""
    values = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[1] in values:
            scale = onnx.numpy_helper.to_array(values[node.input[1]])
            if not np.isfinite(scale).all() or (scale <= 0).any():
                raise Unprocessable(
                    f"calibration found no usable range for {node.output[0]!r}",
                    code="bad_calibration",
                    hint="look at the rows of the training split: are they what the model was trained with?",
                )


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """NNCF without its telemetry, its progress bars and its log."""
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nncf = importlib.import_module("nncf")
        logging.getLogger("nncf").setLevel(logging.CRITICAL)
        yield nncf


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """NNCF runs graphs on all cores, and there is no way to tell it otherwise: meanwhile its engine is one that does
    not, and that does not spin."""
    library = _libraries.onnxruntime()
    module: Any = importlib.import_module("nncf.onnx.engine")
    usual = module.ONNXEngine

    class Bounded(usual):  # type: ignore[misc, valid-type]
        def __init__(self, model: Any) -> None:
            options = library.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = count, 4
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            self.input_names: set[str] = set()
            self.sess = library.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            self.input_names.update(given.name for given in self.sess.get_inputs())

    module.ONNXEngine = Bounded
    try:
        yield
    finally:
        module.ONNXEngine = usual
