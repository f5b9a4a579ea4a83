"""What is written for a machine with TensorRT 8.6: networks that it can read, and answers that are theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks.gpu.eight_six_cases import Arrays, apart, cases, networks
from benchmarks.gpu.eight_six_prepare import OPSET, prepare


@pytest.mark.slow  # torch.export alone takes two seconds
def test_the_answers_are_those_of_the_networks(tmp_path: Path) -> None:
    written = prepare(tmp_path, ["cnn"], sizes=(1, 3))
    assert networks(tmp_path) == written
    assert [facts["name"] for facts in written] == ["cnn", "nonzero", "expanded"]
    for facts in written:
        model = onnx.load(str(tmp_path / f"{facts['name']}.onnx"))
        assert [opset.version for opset in model.opset_import] == [OPSET]
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        found = list(cases(tmp_path, facts))
        for x, y in found:
            assert apart(dict(zip(names, session.run(None, x), strict=True)), y) <= facts["bounds"]["fp32"]
            assert any(fits(x, profile, facts["on_host"]) for profile in facts["profiles"])
        assert len(found) == facts["cases"] + len(facts["batches"])


def test_another_shape_and_nan_are_infinitely_far() -> None:
    right = np.ones((2, 3))
    assert apart({"y": right}, {"y": right}) == 0
    assert apart({"y": right * 1.5}, {"y": right}) == 0.5
    assert apart({"y": right[:1]}, {"y": right}) == float("inf")
    assert apart({"y": right * np.nan}, {"y": right}) == float("inf")
    assert apart({"y": np.empty((2, 0))}, {"y": np.empty((2, 0))}) == 0


def fits(x: Arrays, profile: dict[str, list[list[int]]], on_host: list[str]) -> bool:
    """Whether sizes, or the values of what the host reads, are within the smallest and the largest."""
    told = {name: list(array if name in on_host else array.shape) for name, array in x.items()}
    return all(
        smallest <= size <= largest
        for name, (low, _, high) in profile.items()
        for smallest, size, largest in zip(low, told[name], high, strict=True)
    )
