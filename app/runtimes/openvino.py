"""OpenVINO on the CPU: ONNX or TorchScript to IR (model.xml, model.bin); the only file that imports its library."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.records import Signature
from app.domain.tensors import DTYPES, check
from app.errors import Internal, Problem, Unavailable, Unprocessable
from app.runtimes import Arrays, Availability, BuildOptions, Engine, LoadOptions, _cpu, _libraries
from app.runtimes._refusals import refused_graph, refused_run

SUFFIX = ".xml"
_MODEL = "model.xml"
_SHAPES_KEPT = 1024
# OpenVINO's own default on CPUs with bf16 is bf16: fp32 has to be asked for.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


def available() -> Availability:
    """Found without importing the library, which takes half a second."""
    if importlib.util.find_spec("openvino") is None:
        return Availability(False, "OpenVINO is not installed: pip install 'enginesmith[app]'")
    precisions = ("fp32", "bf16") if _cpu.has_bf16() else ("fp32",)
    return Availability(True, precisions=precisions, version=importlib.metadata.version("openvino"), device="cpu")


def build(source: Path, folder: Path, options: BuildOptions, progress: Callable[[float, str], None]) -> dict[str, Any]:
    """Reads the graph, writes it as IR in full precision, and compiles it once to prove that it can be.

    A TorchScript source is parsed by torch: only a sandboxed child may call this with one.
    """
    ov = _library()
    if options.precision not in _HINTS:
        raise Unprocessable(
            f"OpenVINO on a CPU has no precision {options.precision}",
            code="unsupported_precision",
            hint=f"choose one of {', '.join(available().precisions)}",
        )
    progress(0.0, "reading the graph")
    core = ov.Core()
    try:
        model = core.read_model(str(source)) if source.suffix == ".onnx" else _torchscript(ov, source, options)
    except Problem:
        raise
    except Exception as error:
        raise refused_graph("OpenVINO", error) from error
    quantized = any(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
    if options.precision == "int8" and not quantized:
        raise Unprocessable(
            "this model has no quantized layers", code="not_quantized", hint="run a job of kind quantize on it first"
        )
    progress(0.4, "writing IR")
    ov.save_model(model, str(folder / _MODEL), compress_to_fp16=False)
    del model
    progress(0.6, "compiling")
    compiled = _compile(ov, folder, LoadOptions(threads=1, precision=options.precision))
    _refuse_other_precision(compiled, options.precision)
    progress(1.0, "compiled")
    return {"runtime": "openvino", "version": str(ov.__version__).split("-")[0], "device": "CPU", "cpu": _cpu.name()}


def load(folder: Path, signature: Signature, options: LoadOptions) -> Engine:
    ov = _library()
    try:
        compiled = _compile(ov, folder, options)
    except Problem as error:
        raise Internal(f"the engine does not load: {error.detail}", code="engine_broken") from error
    is_open = any(-1 in t.shape[1:] or (-1 in t.shape and not signature.batched) for t in signature.inputs)
    shapes = _Shapes(ov, ov.Core().read_model(str(folder / _MODEL))) if is_open else None
    if shapes is not None and shapes.branches:
        shapes = None  # a branch that is not taken need not fit, and shape inference looks into both
    return _Engine(ov, compiled, signature, max(1, options.instances), shapes)


class _Shapes:
    """Whether shapes fit the network. OpenVINO's CPU plugin does not look: a MatMul of the wrong size reads past the
    end of its input. Its shape inference does look, takes milliseconds, and so is asked once per set of shapes."""

    def __init__(self, ov: Any, model: Any) -> None:
        self._partial = ov.PartialShape
        self._model = model
        self.branches = any(op.get_type_name() == "If" for op in model.get_ops())
        self._lock = threading.Lock()
        self._fit: dict[tuple[tuple[int, ...], ...], None] = {}

    def check(self, shapes: tuple[tuple[int, ...], ...], positions: list[int]) -> None:
        """Raises OpenVINO's RuntimeError for shapes that do not fit."""
        if shapes in self._fit:
            return
        with self._lock:
            self._model.reshape({i: self._partial(list(s)) for i, s in zip(positions, shapes, strict=True)})
            if len(self._fit) >= _SHAPES_KEPT:
                self._fit.pop(next(iter(self._fit)))
            self._fit[shapes] = None


class _Engine:
    """One compiled model and a request object per run that may go on at once."""

    def __init__(self, ov: Any, compiled: Any, signature: Signature, instances: int, shapes: _Shapes | None) -> None:
        self.signature = signature
        self._shapes = shapes
        self._tensor = ov.Tensor
        self._closed = threading.Event()
        self._inputs = _positions([t.name for t in signature.inputs], compiled.inputs, "input")
        self._outputs = _positions([t.name for t in signature.outputs], compiled.outputs, "output")
        self._dtypes = {t.name: DTYPES.get(t.dtype) for t in signature.outputs}
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(instances):
            self._requests.put(compiled.create_infer_request())

    def infer(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        check(self.signature, inputs)
        if self._closed.is_set():
            raise Unavailable("the engine is closed")
        request = self._requests.get()
        if request is None:
            self._requests.put(None)  # wakes the next one that waits
            raise Unavailable("the engine is closed")
        try:
            if self._shapes is not None:
                given = tuple(inputs[name].shape for name, _ in self._inputs)
                self._shapes.check(given, [position for _, position in self._inputs])
            # Shared memory: OpenVINO reads the caller's arrays, wants them writable and contiguous, and holds no
            # reference to them: a copy that was made for it must live until the run is over.
            arrays = [np.require(inputs[name], requirements=("C", "W")) for name, _ in self._inputs]
            for (_, position), array in zip(self._inputs, arrays, strict=True):
                request.set_input_tensor(position, self._tensor(array, shared_memory=True))
            request.infer()
            # The request overwrites its outputs at the next run: the caller gets copies.
            return {
                name: np.array(request.get_output_tensor(position).data, dtype=self._dtypes[name])
                for name, position in self._outputs
            }
        except Exception as error:
            raise refused_run("OpenVINO", error, self.signature, inputs) from error
        finally:
            if not self._closed.is_set():
                self._requests.put(request)

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        while not self._requests.empty():
            self._requests.get()
        self._requests.put(None)


def _library() -> Any:
    found = available()
    if not found.ok:
        raise Unavailable(found.reason, code="runtime_unavailable", retryable=False)
    return _libraries.openvino()


def _compile(ov: Any, folder: Path, options: LoadOptions) -> Any:
    config: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _HINTS.get(options.precision, "f32"),
        "NUM_STREAMS": max(1, options.instances),
        # Several engines pinned to the same first cores would queue up behind each other.
        "ENABLE_CPU_PINNING": False,
    }
    if options.threads:
        config["INFERENCE_NUM_THREADS"] = options.threads
    core = ov.Core()
    try:
        return core.compile_model(core.read_model(str(folder / _MODEL)), "CPU", config)
    except Exception as error:
        raise refused_graph("OpenVINO", error) from error


def _refuse_other_precision(compiled: Any, precision: str) -> None:
    """Where the CPU lacks a precision OpenVINO quietly takes another one: say so instead."""
    used = str(compiled.get_property("INFERENCE_PRECISION_HINT"))
    if precision == "bf16" and "bfloat16" not in used and "bf16" not in used:
        raise Unprocessable(
            f"this CPU has no bf16: OpenVINO would run {used} instead",
            code="unsupported_precision",
            hint="convert with precision fp32",
        )


def _torchscript(ov: Any, source: Path, options: BuildOptions) -> Any:
    """TorchScript carries neither dtypes nor shapes: float32 is assumed, and the shapes asked for."""
    script = importlib.import_module("torch").jit.load(str(source), map_location="cpu")
    model = ov.convert_model(script.eval())
    shapes = list(options.shapes.values())
    for position, port in enumerate(model.inputs):
        parameter = port.get_node()
        if port.get_element_type().is_dynamic():
            parameter.set_element_type(ov.Type.f32)
        if position < len(shapes):
            parameter.set_partial_shape(ov.PartialShape([-1, *shapes[position][1:]]))
    model.validate_nodes_and_infer_types()
    return model


def _positions(names: list[str], ports: Any, what: str) -> list[tuple[str, int]]:
    """Where each tensor of the signature lies. By name where every name is found once, else by order: OpenVINO
    gives one port several names, and loses some."""
    known: dict[str, list[int]] = {}
    for position, port in enumerate(ports):
        for name in port.get_names():
            known.setdefault(name, []).append(position)
    if all(len(known.get(name, ())) == 1 for name in names):
        return [(name, known[name][0]) for name in names]
    if len(names) != len(ports):
        raise Internal(
            f"the engine has {len(ports)} {what}s and its signature names {len(names)}: {names}", code="engine_broken"
        )
    return [(name, position) for position, name in enumerate(names)]
