"""`make gpu-check` goes the same way on a processor; and says so where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nvidia import without_driver

from benchmarks.gpu import check
from benchmarks.gpu.networks import SUBJECTS, ResNet50, ViT


def test_engines_of_a_processor_are_built_and_compared(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert check.main(["--runtime", "openvino", "--short", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "ok: cnn fp32: relative error" in told
    assert "tensorrt" in told


def test_an_engine_that_is_wrong_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(check.engines.BOUNDS, "fp32", 1e-12)
    assert check.main(["--runtime", "openvino", "--short"]) == 1
    assert "FAILED: cnn fp32: relative error" in capsys.readouterr().out


@without_driver
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([]) == 0
    assert "nothing was run on a GPU" in capsys.readouterr().out
    assert check.main(["--runtime", "tensorrt"]) == 1
    assert "no NVIDIA driver" in capsys.readouterr().out


def test_the_networks_are_those_of_their_papers() -> None:
    """The counts that are known of them, with ten classes in the place of a thousand."""
    counts = {kind: sum(p.numel() for p in kind().parameters()) for kind in (ResNet50, ViT)}
    assert counts[ResNet50] == 25_557_032 - 1000 * 2049 + 10 * 2049
    assert 21.4e6 < counts[ViT] < 21.8e6
    with torch.inference_mode():
        assert ViT().eval()(torch.randn(1, *SUBJECTS["vit"].shape)).shape == (1, 10)


def test_a_driver_of_which_nothing_can_be_used_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check.driver, "is_absent", lambda: False)
    monkeypatch.setattr(check.runtimes, "names", list)
    monkeypatch.setattr(check, "GPU", ())
    assert check.main([]) == 1
    assert "nothing was run on a GPU: FAILED" in capsys.readouterr().out
