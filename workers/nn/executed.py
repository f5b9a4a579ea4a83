"""Whether an int8 engine is one: which of its layers are computed in int8, as the runtime itself tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from app.runtimes import Engine, _libraries

_INT8 = frozenset(
    ("QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger", "QAttention")
)
_FLOAT = frozenset(("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Attention"))


def executed(target: str, engine: Engine | None, folder: Path, scratch: Path) -> dict[str, str] | None:
    """Layer → int8, or the precision that it is computed in; None where the runtime does not tell."""
    if target == "onnxruntime":
        return _in_onnxruntime(folder / "model.onnx", scratch)
    ask: Any = getattr(engine, "executed", None)
    found = ask() if ask is not None else None
    if found is None:
        return None
    return {name: "int8" if precision in ("i8", "u8") else precision for name, precision in found.items()}


def _in_onnxruntime(path: Path, scratch: Path) -> dict[str, str]:
    """From the graph as it is after all its optimizations, which ONNX Runtime writes to a file."""
    library = _libraries.onnxruntime()
    options, written = library.SessionOptions(), scratch / "optimized.onnx"
    options.optimized_model_filepath, options.log_severity_level = str(written), 4
    options.intra_op_num_threads = 1
    library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(str(written)).graph
    written.unlink()
    found = {n.name or n.output[0]: "int8" for n in graph.node if n.op_type in _INT8}
    return found | {n.name or n.output[0]: "f32" for n in graph.node if n.op_type in _FLOAT}
