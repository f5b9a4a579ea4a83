"""What runtimes say of themselves, and that asking does not load their libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nvidia import without_driver

from app import runtimes
from app.domain.records import Signature, Tensor
from app.errors import Unavailable
from app.runtimes import BuildOptions, LoadOptions
from app.runtimes._refusals import first_words
from app.runtimes.echo import EchoEngine

SIGNATURE = Signature(inputs=(Tensor(name="x", shape=(-1, 2)),), outputs=(Tensor(name="y", shape=(-1, 2)),))


def test_asking_every_runtime_imports_no_library() -> None:
    code = """
import json, sys
from app import runtimes
found = {n: runtimes.get(n).available().ok for n in runtimes.names()}
print(json.dumps([found, [m for m in ("torch", "openvino", "onnxruntime", "tensorrt") if m in sys.modules]]))
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    found, imported = json.loads(done.stdout)
    assert imported == []
    assert {"echo", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"} <= found.keys()


@without_driver
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_tensorrt_without_a_driver_says_so(name: str, tmp_path: Path) -> None:
    runtime = runtimes.get(name)
    assert runtime.available().reason == "no NVIDIA driver: libcuda.so.1 was not found"
    with pytest.raises(Unavailable, match=r"libcuda\.so\.1"):
        runtime.load(tmp_path, SIGNATURE, LoadOptions())
    if name == "tensorrt":  # the other one builds without a GPU
        with pytest.raises(Unavailable, match=r"libcuda\.so\.1"):
            runtime.build(tmp_path / "m.onnx", tmp_path, BuildOptions(), lambda share, phase: None)


def test_openvino_comes_without_its_converter() -> None:
    code = """
import sys
from app.runtimes import _libraries
library = _libraries.openvino()
assert library is _libraries.openvino() and library.Core and library.save_model
heavy = [m for m in sys.modules if m.startswith(("openvino.tools.ovc", "openvino.frontend.tensorflow"))]
assert not heavy, heavy
assert callable(_libraries.openvino_converter())
assert sys.modules["openvino_telemetry"] is None
"""
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_an_unknown_runtime() -> None:
    with pytest.raises(KeyError):
        runtimes.get("_cuda")


def test_echo_builds_loads_and_answers_its_inputs(tmp_path: Path) -> None:
    echo = runtimes.get("echo")
    source = tmp_path / "source"
    source.write_text('{"delay_s": 0.001}')
    echo.build(source, tmp_path, BuildOptions(), lambda share, phase: None)
    engine = echo.load(tmp_path, SIGNATURE, LoadOptions())
    x = np.array([[1, 2]], np.float32)
    y = engine.infer({"x": x})["y"]
    x[:] = 0
    np.testing.assert_array_equal(y, [[1, 2]])
    assert isinstance(engine, EchoEngine)
    assert engine.seen == [1]
    engine.close()
    with pytest.raises(Unavailable):
        engine.infer({"x": x})


def test_the_librarys_words_without_its_places() -> None:
    text = "Exception from src/core.cpp:84:\nCheck 'a == b' failed at src/x.cpp:3:\nShapes differ\n"
    assert first_words(text) == "Shapes differ"
