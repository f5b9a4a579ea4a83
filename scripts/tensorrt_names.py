"""Writes down what TensorRT's Python bindings have: `python scripts/tensorrt_names.py MODULE > names.json`.

Where TensorRT's libraries are missing its bindings still import over empty ones with the same names:
    nm -D --undefined-only tensorrt_bindings/tensorrt.so | awk '$2 ~ /^(createInfer|createNv|get|initLibNv)/ {print "void* "$2"(void){return 0;}"}' > stub.c
    for name in nvinfer nvinfer_plugin nvonnxparser; do gcc -shared -fPIC -Wl,-soname,lib$name.so.11 -o lib$name.so.11 stub.c; done
    LD_LIBRARY_PATH=. python scripts/tensorrt_names.py tensorrt_bindings
"""  # noqa: E501

from __future__ import annotations

import importlib
import json
import sys

# What the builder and the inference half touch.
CLASSES = (
    "Builder", "BuilderFlag", "EngineInspector", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "ILogger",
    "INetworkDefinition", "IOptimizationProfile", "IOutputAllocator", "IProgressMonitor", "ITensor", "ITimingCache",
    "LayerInformationFormat", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser", "ParserError",
    "ProfilingVerbosity", "Runtime", "TensorIOMode", "TensorLocation",
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
