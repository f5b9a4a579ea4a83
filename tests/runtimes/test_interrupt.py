"""A run that would go on for ever is ended from another thread, where a library can do that."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from drills.networks import hanging

from app.domain.records import Signature, Tensor
from app.errors import Problem
from app.runtimes import BuildOptions, LoadOptions, onnxruntime


def test_a_loop_of_onnx_runtime(tmp_path: Path) -> None:
    source, folder = tmp_path / "hanging.onnx", tmp_path / "engine"
    source.write_bytes(hanging())
    folder.mkdir()
    onnxruntime.build(source, folder, BuildOptions(), lambda share, phase: None)
    signature = Signature(inputs=(Tensor(name="x", shape=(-1, 3)),), outputs=(Tensor(name="logits", shape=(-1, 3)),))
    engine = onnxruntime.load(folder, signature, LoadOptions(threads=1))
    begun, raised = threading.Event(), []

    def run() -> None:
        engine.infer({"x": np.ones((1, 3), np.float32)})
        begun.set()
        with pytest.raises(Problem) as caught:
            engine.infer({"x": np.array([[1e15, 0, 0]], np.float32)})
        raised.append(caught.value)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert begun.wait(120)
    engine.interrupt(12345)  # nobody's
    thread.join(0.5)
    assert thread.is_alive()
    for _ in range(1200):
        engine.interrupt(thread.ident)  # again where it came before the run had begun
        thread.join(0.1)
        if raised:
            break
    assert raised
    # Others, and the same thread later, are not concerned.
    np.testing.assert_array_equal(engine.infer({"x": np.ones((1, 3), np.float32)})["logits"], np.ones((1, 3)))
    engine.close()
