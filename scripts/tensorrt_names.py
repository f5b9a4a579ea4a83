"""Writes down what TensorRT's Python bindings have: `python scripts/tensorrt_names.py MODULE > names.json`.

Where TensorRT's libraries are missing its bindings still import over empty ones, which scripts/tensorrt_stubs.py makes:
    python scripts/tensorrt_stubs.py tensorrt_bindings/tensorrt.so stubs libnv
    LD_LIBRARY_PATH=stubs python scripts/tensorrt_names.py tensorrt_bindings
"""

from __future__ import annotations

import importlib
import json
import sys

# What the builder, the inference half and benchmarks/gpu/eight_six.py touch.
CLASSES = (
    "Builder", "BuilderFlag", "EngineInspector", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "ILogger",
    "INetworkDefinition", "IOptimizationProfile", "IOutputAllocator", "IProgressMonitor", "ITensor", "ITimingCache",
    "LayerInformationFormat", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser", "OnnxParserRefitter",
    "ParserError", "PreviewFeature", "ProfilingVerbosity", "Refitter", "Runtime", "TacticSource", "TensorIOMode",
    "TensorLocation",
)  # fmt: skip


def names(module: str) -> dict[str, object]:
    """Version → the module's names, and those of the classes above."""
    trt = importlib.import_module(module)
    found = {"": _public(trt)} | {name: _public(getattr(trt, name)) for name in CLASSES if hasattr(trt, name)}
    return {"module": module, "version": str(trt.__version__), "names": found}


def _public(thing: object) -> list[str]:
    return sorted(name for name in dir(thing) if not name.startswith("_"))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(names(sys.argv[1]), indent=0) + "\n")
