"""ONNX Runtime on the CPU: the ONNX file as it is (model.onnx); the only file that imports its library."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.records import Signature
from app.domain.tensors import check
from app.errors import Internal, Unavailable, Unprocessable
from app.runtimes import Arrays, Availability, BuildOptions, Engine, LoadOptions, _cpu, _libraries, _ort_values
from app.runtimes._names import pairs
from app.runtimes._refusals import first_words, refused_graph, refused_run

SUFFIX = ".onnx"
_MODEL = "model.onnx"
# A graph is run as it is written. In fp16 the CPU has kernels for a part of the operators only, in bf16 for none.
PRECISIONS = ("fp32", "int8")
_SILENT = 4  # ONNX Runtime prints what it also raises
_LARGE = 1024 * 1024


def available() -> Availability:
    """Found without importing the library."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Availability(False, "ONNX Runtime is not installed: pip install 'enginesmith[app]'")
    return Availability(True, precisions=PRECISIONS, version=importlib.metadata.version("onnxruntime"), device="cpu")


def build(source: Path, folder: Path, options: BuildOptions, progress: Callable[[float, str], None]) -> dict[str, Any]:
    """Copies the graph and opens it once to prove that it runs here; the optimizing happens at every load."""
    ort = _library()
    if source.suffix != ".onnx":
        raise Unprocessable(
            f"ONNX Runtime runs .onnx files, not {source.suffix or 'this one'}",
            code="unsupported_source",
            hint="convert to openvino instead, or export the model to ONNX",
        )
    if options.precision not in PRECISIONS:
        raise Unprocessable(
            f"ONNX Runtime on a CPU has no precision {options.precision}: it runs a graph as it is written",
            code="unsupported_precision",
            hint="choose fp32; or the target openvino for bf16",
        )
    progress(0.0, "copying the graph")
    shutil.copyfile(source, folder / _MODEL)
    progress(0.3, "opening it")
    session = _open(ort, folder / _MODEL, LoadOptions(threads=1))
    del session
    if options.precision == "int8" and b"QuantizeLinear" not in (folder / _MODEL).read_bytes():
        raise Unprocessable(
            "this model has no quantized layers", code="not_quantized", hint="run a job of kind quantize on it first"
        )
    progress(1.0, "opened")
    return {"runtime": "onnxruntime", "version": str(ort.__version__), "device": "CPU", "cpu": _cpu.name()}


def load(folder: Path, signature: Signature, options: LoadOptions) -> Engine:
    ort = _library()
    try:
        session = _open(ort, folder / _MODEL, options)
    except Unprocessable as error:
        raise Internal(f"the engine does not load: {error.detail}", code="engine_broken") from error
    return _Engine(ort, session, signature)


class _Engine:
    """One session; ONNX Runtime lets several threads run it at once and gives each its own outputs."""

    def __init__(self, ort: Any, session: Any, signature: Signature) -> None:
        self.signature = signature
        self._ort = ort
        self._run: _ort_values.Run | None = _ort_values.runner(ort, session)
        self._runs: dict[int, Any] = {}  # thread → the options of its runs, through which one of them is ended
        self._inputs = pairs([t.name for t in signature.inputs], [i.name for i in session.get_inputs()], "input")
        outputs = pairs([t.name for t in signature.outputs], [o.name for o in session.get_outputs()], "output")
        self._outputs = [theirs for _, theirs in outputs]
        self._names = [ours for ours, _ in outputs]

    def infer(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        run = self._run
        if run is None:
            raise Unavailable("the engine is closed")
        check(self.signature, inputs)
        thread = threading.get_ident()
        options = self._runs.get(thread)
        if options is None:
            self._runs[thread] = options = self._ort.RunOptions()
            options.log_severity_level = _SILENT
        try:
            # It reads arrays where they lie, and its kernels count on their alignment: a tensor that is a view of a
            # request's body may begin anywhere.
            given = {theirs: np.require(inputs[ours], requirements="A") for ours, theirs in self._inputs}
            found = run(self._outputs, given, options)
        except Exception as error:
            raise refused_run("ONNX Runtime", error, self.signature, inputs) from error
        return dict(zip(self._names, map(_own, found), strict=True))

    def interrupt(self, thread: int) -> None:
        options = self._runs.pop(thread, None)
        if options is not None:
            options.terminate = True  # looked at between two nodes, and at every turn of a loop

    def close(self) -> None:
        self._run = None


def _own(output: Any) -> npt.NDArray[Any]:
    """Large ones as copies: the session's arena, where they lie, grows with all that wait to be taken, and never gives
    anything back."""
    array = np.asarray(output)
    return array.copy() if array.nbytes > _LARGE else array


def _library() -> Any:
    found = available()
    if not found.ok:
        raise Unavailable(found.reason, code="runtime_unavailable", retryable=False)
    return _libraries.onnxruntime()


def _open(ort: Any, path: Path, options: LoadOptions) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = _SILENT
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    # Spinning threads burn the cores that other engines, and the training on this host, could use.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(path), sess_options=settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        if "external data" in str(error).lower():
            raise Unprocessable(
                f"the graph keeps its weights in another file: {first_words(str(error))}",
                code="external_data",
                hint="save the model with its weights inside: onnx.save(model, path, save_as_external_data=False)",
            ) from error
        raise refused_graph("ONNX Runtime", error) from error
