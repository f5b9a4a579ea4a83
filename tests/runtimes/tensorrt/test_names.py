"""Every name of TensorRT's that the code uses is one that it has: in 10, in 11, in TensorRT for RTX, and of what runs
plans also in 8.6.

The lists were written down by scripts/tensorrt_names.py from the real bindings. Where TensorRT for RTX is installed its
list is compared with it; those of 10 and 11 are compared in test_bindings.py, with what the registry has.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorrt_used import BUILDING, INFERENCE, files, missing, used

from app.runtimes._trt.flavour import RTX
from scripts.tensorrt_names import names

ROOT = Path(__file__).resolve().parents[3]
LISTS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "tests/golden/tensorrt").glob("*.json"))}


def test_the_code_is_seen() -> None:
    """What it certainly uses is found: an empty search would prove nothing."""
    certain = {
        ("", "Builder"), ("Builder", "build_serialized_network"), ("ProfilingVerbosity", "DETAILED"),
        ("IExecutionContext", "execute_async_v3"), ("OnnxParser", "parse_from_file"), ("BuilderFlag", "TF32"),
    }  # fmt: skip
    assert certain <= used([*INFERENCE, *BUILDING])
    certain = {
        ("", "Runtime"), ("Runtime", "deserialize_cuda_engine"), ("IExecutionContext", "set_tensor_address"),
        ("ICudaEngine", "get_tensor_profile_shape"), ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"),
        ("IBuilderConfig", "set_tactic_sources"), ("BuilderFlag", "FP16"), ("IOptimizationProfile", "set_shape"),
    }  # fmt: skip
    assert certain <= used(files("8.6"))


@pytest.mark.parametrize("version", LISTS)
def test_every_name_is_there(version: str) -> None:
    known = LISTS[version]["names"]
    assert missing(version, known) == set()
    assert "Severity" in known["ILogger"]
    assert "log" in known["ILogger"]


def test_what_was_removed_is_not_used() -> None:
    gone = {"build_engine", "max_workspace_size", "execute_async_v2", "get_binding_shape", "EXPLICIT_BATCH", "FP16"}
    assert not {name for _, name in used([*INFERENCE, *BUILDING])} & gone


@pytest.mark.skipif(not RTX.is_installed, reason="TensorRT for RTX is not installed: pip install -e .[rtx]")
def test_the_list_of_the_library_that_is_here() -> None:
    assert LISTS["rtx"]["names"] == names("tensorrt_rtx")["names"]
