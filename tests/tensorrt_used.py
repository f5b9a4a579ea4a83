"""Which names of TensorRT's the code uses: read from its source, since no version of TensorRT runs everywhere."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INFERENCE = sorted((ROOT / "app" / "gpu").glob("*.py"))
BUILDING = sorted((ROOT / "app" / "runtimes" / "_trt").glob("*.py"))
# Runs on TensorRT 8.6 alone, whose way of building is another.
EIGHT_SIX = [ROOT / "benchmarks" / "gpu" / "eight_six_build.py"]
# What an object of TensorRT's is called in the code.
OBJECTS = {
    "builder": "Builder", "network": "INetworkDefinition", "config": "IBuilderConfig", "parser": "OnnxParser",
    "engine": "ICudaEngine", "context": "IExecutionContext", "_context": "IExecutionContext", "_runtime": "Runtime",
    "profile": "IOptimizationProfile", "inspector": "EngineInspector", "cache": "ITimingCache",
    "refitter": "Refitter", "reader": "OnnxParserRefitter",
}  # fmt: skip
# Asked for with getattr, because not every version has it.
OPTIONAL = {("ICudaEngine", "device_memory_size"), ("ICudaEngine", "device_memory_size_v2")}
# Not TensorRT's: pycuda's context has the same name.
OTHERS = {("IExecutionContext", "push"), ("IExecutionContext", "pop")}


def used(files: Iterable[Path]) -> set[tuple[str, str]]:
    """(class, name), and ("", name) for what the module itself has."""
    found: set[tuple[str, str]] = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            chain = _chain(node)
            if "trt" in chain:
                parts = chain[chain.index("trt") + 1 :]
                found |= {("", parts[0])} if parts else set()
                found |= {(parts[-2], parts[-1])} if len(parts) > 1 else set()
            elif (
                path.parent.name + "/" + path.name != "_trt/engine.py"
                and len(chain) > 1
                and chain[-2] in OBJECTS
                and chain[-3:-2] in ([], ["self"], ["plan"], ["_plan"])
            ):
                found.add((OBJECTS[chain[-2]], chain[-1]))
    return {(of, name) for of, name in found - OTHERS if not name.startswith("__")}


def _chain(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Attribute):
        return [*_chain(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else [""]


def files(version: str) -> list[Path]:
    """What has to run on it."""
    return [*INFERENCE, *EIGHT_SIX] if version == "8.6" else [*INFERENCE, *BUILDING]


def missing(version: str, known: Mapping[str, Collection[str]]) -> set[tuple[str, str]]:
    """What the code uses and that version lacks."""
    severities = {"ERROR", "INTERNAL_ERROR", "WARNING"}
    return {(of, name) for of, name in used(files(version)) - OPTIONAL if name not in known.get(of, severities)}
