"""Build and load, for either flavour: an ONNX file in its precision, the plan beside it, and what is known of both."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from app.domain.records import Signature
from app.errors import Conflict, DeviceLost, Internal, Unprocessable
from app.gpu import driver
from app.gpu.device import Device
from app.gpu.inference import Plan
from app.runtimes import BuildOptions, Engine, LoadOptions, misfit
from app.runtimes._trt import building, precision, refitting
from app.runtimes._trt.engine import PlanEngine
from app.runtimes._trt.flavour import Flavour, precisions
from app.runtimes._trt.inspection import Inspected, inspect
from app.runtimes._trt.sparsity import Sparse, sparse_layers
from app.runtimes._trt.travel import built_for

MODEL, PLAN, ABOUT = "model.onnx", "model.plan", "build.json"
_TYPED = 0.05  # share of a build in which the graph is rewritten
_BUILT = 0.95


def build(
    flavour: Flavour, source: Path, folder: Path, options: BuildOptions, progress: Callable[[float, str], None]
) -> dict[str, Any]:
    """Leaves three files: the graph as it was built (another GPU builds its plan from it), the plan, and what is known
    of the build: layers that stay in fp32, each layer's precision, notes. Raises as the interface says."""
    trt = _usable(flavour, options)
    if source.suffix != ".onnx":
        raise Unprocessable(
            f"{flavour.product} builds .onnx files, not {source.suffix or 'this one'}",
            code="unsupported_source",
            hint="convert to openvino instead, or export the model to ONNX",
        )
    progress(0.0, f"writing the graph in {options.precision}")
    typed = precision.write(source, folder / MODEL, options.precision, options.samples)
    sparse = sparse_layers(folder / MODEL)
    options = replace(options, sparse=sparse.layers > 0 if options.sparse is None else options.sparse)
    try:
        plan, weights = _plan(flavour, trt, folder / MODEL, options, progress)
    except Unprocessable as error:
        if typed.rest != "fp16":
            raise
        typed = precision.write_plain(source, folder / MODEL, error.detail)
        plan, weights = _plan(flavour, trt, folder / MODEL, options, progress)
    (folder / PLAN).write_bytes(plan)
    progress(_BUILT, "looking at its layers")
    found = _inspected(trt, plan, folder / MODEL)
    here = built_for(flavour)
    about = {"built_for": here} | _about(options, typed, sparse, found) | weights
    (folder / ABOUT).write_text(json.dumps(about, indent=1))
    progress(1.0, "built")
    return here


def _plan(
    flavour: Flavour, trt: Any, graph: Path, options: BuildOptions, progress: Callable[[float, str], None]
) -> tuple[bytes, dict[str, Any]]:
    """Built, or one of the same structure with these weights; and `refit`, what is to be known of that: the key of the
    structure, whether the plan came to be so, and why not."""
    about: dict[str, Any] = {}
    if options.refit:
        key = refitting.key_of(graph, options, built_for(flavour))
        about = {"refit": {"structure": key, "done": False, "why_not": None}}
        if options.refittable is not None and (found := options.refittable(key)) is not None:
            progress(_TYPED, "exchanging the weights of a plan")
            try:
                plan = refitting.refit(trt, device(), found.read_bytes(), graph)
            except Exception as error:  # whatever it is, building is the other way
                about["refit"]["why_not"] = " ".join(str(error).split())[:500] or type(error).__name__
            else:
                about["refit"]["done"] = True
                return plan, about
    return building.build(trt, graph, options, lambda share, phase: progress(_within(share), phase)), about


def load(flavour: Flavour, folder: Path, signature: Signature, options: LoadOptions) -> Engine:
    """Raises Unavailable with the reason, Conflict for a plan of another GPU or version, Internal for one that does not
    load."""
    found = flavour.available()
    if not found.ok:
        raise flavour.refusal(found.reason)
    trt = flavour.library()
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        blob = (folder / PLAN).read_bytes()
    except (OSError, ValueError) as error:
        raise Internal(f"the version's files are not whole: {error}", code="engine_broken") from error
    if why := misfit(flavour.name, about.get("built_for", {})):
        raise Conflict(
            f"this plan was built for something else: {why}",
            code="plan_of_another_gpu",
            hint="convert the version that it came from again, on this GPU",
        )
    if device().is_lost():
        raise DeviceLost("the GPU failed for good: this process has to be started again")
    plan = Plan(trt, device(), blob)
    try:
        return PlanEngine(plan, signature, options, about.get("layers", ()))
    except BaseException:
        plan.close()
        raise


@functools.cache
def device() -> Device:
    """The first GPU's primary context: one for the whole process, and whatever else runs in it."""
    return Device(importlib.import_module("pycuda.driver"))


def _usable(flavour: Flavour, options: BuildOptions) -> Any:
    """The library, where it can build. Raises Unavailable, Unprocessable for a precision that the GPU lacks."""
    found = flavour.available()
    if not found.ok and not flavour.builds_anywhere:
        raise flavour.refusal(found.reason)
    trt = flavour.library()
    gpu = driver.gpu()
    able = precisions(gpu.capability) if gpu else precisions((8, 0))
    if options.precision not in able:
        raise Unprocessable(
            f"{flavour.product} on this GPU has no precision {options.precision}",
            code="unsupported_precision",
            hint=f"choose {', '.join(able)}",
        )
    return trt


def _inspected(trt: Any, blob: bytes, graph: Path) -> Inspected:
    """What TensorRT made of the graph. Nothing without a GPU: a plan is only opened where one is."""
    return Inspected() if driver.missing() is not None else inspect(trt, device(), blob, graph)


def _about(options: BuildOptions, typed: precision.Typed, sparse: Sparse, found: Inspected) -> dict[str, Any]:
    return {
        "precision": options.precision,
        "rest": typed.rest,
        "kept_fp32": typed.kept,
        "range_samples": typed.checked,
        "sparse": asdict(sparse) | {"used": options.sparse},
        "layers": [layer.told() for layer in found.layers],
        "timed_with": {name: list(shape) for name, shape in found.timed_with.items()},
        "notes": [*typed.notes, *found.notes],
    }


def _within(share: float) -> float:
    return _TYPED + (_BUILT - _TYPED) * share
