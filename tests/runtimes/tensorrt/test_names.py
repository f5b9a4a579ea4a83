"""Every name of TensorRT's that the code uses is one that it has: in 10, in 11, and in TensorRT for RTX.

The lists were written down by scripts/tensorrt_names.py from the real bindings; where TensorRT for RTX is installed its
list is compared with it.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from app.runtimes._trt.flavour import RTX
from scripts.tensorrt_names import names

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted([*(ROOT / "app" / "gpu").glob("*.py"), *(ROOT / "app" / "runtimes" / "_trt").glob("*.py")])
LISTS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "tests/golden/tensorrt").glob("*.json"))}
# What an object of TensorRT's is called in the code.
OBJECTS = {
    "builder": "Builder", "network": "INetworkDefinition", "config": "IBuilderConfig", "parser": "OnnxParser",
    "engine": "ICudaEngine", "context": "IExecutionContext", "_context": "IExecutionContext", "_runtime": "Runtime",
    "profile": "IOptimizationProfile", "inspector": "EngineInspector", "cache": "ITimingCache",
}  # fmt: skip
# Asked for with getattr, because not every version has it.
OPTIONAL = {("ICudaEngine", "device_memory_size"), ("ICudaEngine", "device_memory_size_v2")}
# Not TensorRT's: pycuda's context has the same name.
OTHERS = {("IExecutionContext", "push"), ("IExecutionContext", "pop")}


def used() -> set[tuple[str, str]]:
    """(class, name), and ("", name) for what the module itself has."""
    found: set[tuple[str, str]] = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            chain = _chain(node)
            if "trt" in chain:
                parts = chain[chain.index("trt") + 1 :]
                found |= {("", parts[0])} if parts else set()
                found |= {(parts[-2], parts[-1])} if len(parts) > 1 else set()
            elif (
                path.name != "engine.py"
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


def test_the_code_is_seen() -> None:
    """What it certainly uses is found: an empty search would prove nothing."""
    certain = {
        ("", "Builder"), ("Builder", "build_serialized_network"), ("ProfilingVerbosity", "DETAILED"),
        ("IExecutionContext", "execute_async_v3"), ("OnnxParser", "parse_from_file"), ("BuilderFlag", "TF32"),
    }  # fmt: skip
    assert certain <= used()


@pytest.mark.parametrize("version", LISTS)
def test_every_name_is_there(version: str) -> None:
    known = LISTS[version]["names"]
    missing = {(of, name) for of, name in used() if of in known and name not in known[of]} - OPTIONAL
    assert missing == set()
    severities = {"ERROR", "INTERNAL_ERROR", "WARNING"}
    assert "Severity" in known["ILogger"]
    assert {of for of, name in used() if of not in known and name not in severities} == set()


def test_what_was_removed_is_not_used() -> None:
    gone = {"build_engine", "max_workspace_size", "execute_async_v2", "get_binding_shape", "EXPLICIT_BATCH", "FP16"}
    assert not {name for _, name in used()} & gone


@pytest.mark.skipif(not RTX.is_installed, reason="TensorRT for RTX is not installed: pip install -e .[rtx]")
def test_the_list_of_the_library_that_is_here() -> None:
    assert LISTS["rtx"]["names"] == names("tensorrt_rtx")["names"]
