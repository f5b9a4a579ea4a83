"""OpenVINO on the CPU: ONNX or TorchScript to IR (model.xml, model.bin); the only file that imports its library."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.records import Signature
from app.domain.tensors import DTYPES, check
from app.errors import Internal, Problem, Unavailable, Unprocessable
from app.runtimes import Arrays, Availability, BuildOptions, Engine, LoadOptions, Slot, _cpu, _libraries
from app.runtimes._openvino_graphs import Shapes, from_torchscript, is_steady
from app.runtimes._refusals import refused_graph, refused_run
from app.runtimes._slots import Buffers, Room, padded

SUFFIX = ".xml"
_MODEL = "model.xml"
# OpenVINO's own default on CPUs with bf16 is bf16: fp32 has to be asked for.
_LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


def available() -> Availability:
    """Found without importing the library, which takes half a second."""
    if importlib.util.find_spec("openvino") is None:
        return Availability(False, "OpenVINO is not installed: pip install 'enginesmith[app]'")
    precisions = ("fp32", "bf16", "int8") if _cpu.has_bf16() else ("fp32", "int8")
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
        model = core.read_model(str(source)) if source.suffix == ".onnx" else from_torchscript(ov, source, options)
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
    model = ov.Core().read_model(str(folder / _MODEL))
    shapes = Shapes(ov, model) if is_open else None
    if shapes is not None and shapes.branches:
        shapes = None  # a branch that is not taken need not fit, and shape inference looks into both
    engine = _Engine(ov, compiled, signature, options, shapes)
    engine.steady = engine.fixed and is_steady(ov, model)
    return engine


class _Slot:
    """One request object of OpenVINO over input memory of ours, bound once per size of batch.

    OpenVINO reads that memory where it lies and holds no reference to it: `_buffers` and `_bound` do.
    pads: whether a batch is run as one of a size that is known, with rows of zeros at its end, where one is at most a
    quarter larger: an unknown size costs 8 ms and more at its first run, and half a megabyte from then on.
    """

    fresh = False

    def __init__(self, engine: _Engine, request: Any) -> None:
        self.pads = False
        self._engine = engine
        self._request = request
        self._buffers = Buffers(engine.signature, engine.max_rows)
        self._bound: Room | None = None
        self._rows = 0

    def fill(self, parts: Sequence[Arrays], rows: int) -> None:
        self._rows = rows
        size = padded(rows, self._engine.met) if self.pads else rows
        room = self._buffers.room(parts[0], size)
        if room is not self._bound:
            self._bind(room)
        room.fill(parts, rows if size > rows else None)

    def _bind(self, room: Room) -> None:
        engine = self._engine
        self._bound = None
        try:
            if room.bound is None:
                if engine.shapes is not None:
                    engine.shapes.check(tuple(a.shape for a in room.arrays), [p for _, p in engine.inputs])
                room.bound = [engine.tensor(array, shared_memory=True) for array in room.arrays]
            for (_, position), tensor in zip(engine.inputs, room.bound, strict=True):
                self._request.set_input_tensor(position, tensor)
        except Exception as error:
            raise refused_run("OpenVINO", error, engine.signature, room.named()) from error
        self._bound = room

    def run(self) -> dict[str, npt.NDArray[Any]]:
        engine, room, request = self._engine, self._bound, self._request
        if engine.closed or room is None:
            raise Unavailable("the engine is closed")
        try:
            request.infer()
            found = {
                name: np.asarray(request.get_output_tensor(position).data, dtype)
                for name, position, dtype in engine.outputs
            }
        except Exception as error:
            raise refused_run("OpenVINO", error, engine.signature, room.named()) from error
        if engine.fixed:
            size = len(room.arrays[0])
            engine.met.add(size)
            if size > self._rows:
                # Whatever has another number of rows is wrong, and told by who knows how many were given.
                found = {n: a[: self._rows] if a.shape[:1] == (size,) else a for n, a in found.items()}
        return found


class _Engine:
    """One compiled model. A slot per run that may go on at once; `infer` borrows one that nobody has taken."""

    def __init__(
        self, ov: Any, compiled: Any, signature: Signature, options: LoadOptions, shapes: Shapes | None
    ) -> None:
        self.signature = signature
        self.max_rows = options.max_batch
        self.fixed = signature.batched and all(-1 not in t.shape[1:] for t in signature.inputs)
        self.met: set[int] = set()
        self.closed = False
        self.steady = False
        self.shapes = shapes
        self.tensor = ov.Tensor
        self.inputs = _positions([t.name for t in signature.inputs], compiled.inputs, "input")
        outputs = _positions([t.name for t in signature.outputs], compiled.outputs, "output")
        dtypes = [DTYPES.get(t.dtype) for t in signature.outputs]
        self.outputs = [(name, position, dtype) for (name, position), dtype in zip(outputs, dtypes, strict=True)]
        self._compiled = compiled
        self._turns = threading.Semaphore(max(1, options.instances))
        self._free: deque[_Slot] = deque()

    def slot(self) -> Slot:
        """One that `infer` has warmed, if there is one. Raises Unavailable."""
        slot = self._take()
        slot.pads = self.fixed
        return slot

    def _take(self) -> _Slot:
        try:
            return self._free.pop()
        except IndexError:
            compiled = self._compiled
            if compiled is None:
                raise Unavailable("the engine is closed") from None
            return _Slot(self, compiled.create_infer_request())

    def infer(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        rows = check(self.signature, inputs)
        with self._turns:
            if self.closed:
                raise Unavailable("the engine is closed")
            slot = self._take()
            try:
                slot.fill([inputs], rows)
                # The next run overwrites the outputs: the caller gets copies.
                return {name: array.copy() for name, array in slot.run().items()}
            finally:
                if not self.closed:
                    self._free.append(slot)

    def executed(self) -> dict[str, str]:
        """Name of every convolution and matrix product → the precision it is computed in, as in `i8`, `u8`, `f32`."""
        found = {}
        for op in self._compiled.get_runtime_model().get_ops() if self._compiled is not None else ():
            about = op.get_rt_info()
            if _told(about, "layerType") in _LAYERS:
                names = _told(about, "originalLayersNames") or op.get_friendly_name()
                found[names.split(",")[0].partition("/WithoutBiases")[0]] = _told(about, "runtimePrecision")
        return found

    def close(self) -> None:
        self.closed = True
        self._compiled = None
        self._free.clear()


def _told(about: Any, key: str) -> str:
    return str(about[key].astype(str)) if key in about else ""


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
        return core.compile_model(_widened(ov, core.read_model(str(folder / _MODEL))), "CPU", config)
    except Exception as error:
        raise refused_graph("OpenVINO", error) from error


def _widened(ov: Any, model: Any) -> Any:
    """The model with inputs and outputs of bfloat16 as float32: OpenVINO shows their bits as if they were float16."""
    narrow = ov.Type.bf16
    if not any(port.get_element_type() == narrow for port in (*model.inputs, *model.outputs)):
        return model
    edges = ov.preprocess.PrePostProcessor(model)
    for ports, edge in ((model.inputs, edges.input), (model.outputs, edges.output)):
        for position, port in enumerate(ports):
            if port.get_element_type() == narrow:
                edge(position).tensor().set_element_type(ov.Type.f32)
    return edges.build()


def _refuse_other_precision(compiled: Any, precision: str) -> None:
    """Where the CPU lacks a precision OpenVINO quietly takes another one: say so instead."""
    used = str(compiled.get_property("INFERENCE_PRECISION_HINT"))
    if precision == "bf16" and "bfloat16" not in used and "bf16" not in used:
        raise Unprocessable(
            f"this CPU has no bf16: OpenVINO would run {used} instead",
            code="unsupported_precision",
            hint="convert with precision fp32",
        )


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
