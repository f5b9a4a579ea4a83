"""benchmarks/gpu/eight_six.py over a GPU that is none: what is wrong is told, and what is right passes."""

from __future__ import annotations

import argparse
import ast
import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import Cuda, FakeLibcuda, Trt

from app.errors import Internal
from app.gpu.device import Device
from benchmarks.gpu import eight_six

ROOT = Path(__file__).resolve().parents[2]


class Library(Trt):
    """One network; a plan of zeros is none."""

    __version__ = "8.6.0"

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        runtime = super().Runtime(logger)
        load = runtime.deserialize_cuda_engine

        def deserialize(blob: bytes) -> Any:
            self.loads = any(blob)
            return load(blob)

        runtime.deserialize_cuda_engine = deserialize
        return runtime


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """y = 2x over rows of three, as eight_six_prepare.py would write it."""
    x = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    np.savez(tmp_path / "doubled.npz", **{"0.in.x": x[:1], "0.out.y": x[:1] * 2, "1.in.x": x, "1.out.y": x * 2})
    facts = {"name": "doubled", "on_host": [], "cases": 2, "batches": [1, 8], "profiles": [], "bounds": {"fp32": 1e-6}}
    (tmp_path / "networks.json").write_text(json.dumps([facts]))
    return tmp_path


def measured(folder: Path, factor: float = 2.0, build: Any = lambda *_: b"plan") -> tuple[int, dict[str, Any]]:
    cuda = Cuda()
    trt = Library(
        cuda, inputs={"x": ("float32", (-1, 3))}, outputs={"y": ("float32", (-1, 3))},
        profiles=[{"x": ((1, 3), (4, 3))}, {"x": ((5, 3), (8, 3))}],
        shapes=lambda s: {"y": s["x"]}, work=lambda given: {"y": given["x"] * np.float32(factor)},
    )  # fmt: skip
    given = argparse.Namespace(networks="", precisions="fp32,fp16", seconds=0.0, rounds=3, out=folder / "found.json")
    device = Device(cuda, libcuda=FakeLibcuda(cuda))  # type: ignore[arg-type]
    failed = eight_six.measure(folder, trt, device, given, build)
    assert not cuda.heap.blocks
    assert not cuda.pinned.blocks
    return failed, json.loads(given.out.read_text())


def test_what_is_right_passes_and_is_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed, report = measured(folder)
    assert failed == report["failed"] == 0
    (row,) = report["engines"]
    assert row["problem"] is None
    assert row["error"] == 0
    assert [speed["batch"] for speed in row["speeds"]] == [1, 8]
    assert all(speed["graph"] and speed["p99_ms"] >= speed["p50_ms"] > 0 for speed in row["speeds"])
    assert report["machine"]["tensorrt"] == "8.6.0"
    assert report["rounds"] == [{"network": "doubled", "rounds": 3, "kept_bytes": 0}]
    told = capsys.readouterr().out
    assert "ok: doubled fp32: relative error 0.0e+00 (at most 1e-06)" in told
    assert "ok: a plan that is none: refused in words" in told
    assert "ok: 3 rounds of loading and closing doubled keep 0.0 MiB" in told
    assert told.endswith("all good\n")


def test_what_is_wrong_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed, report = measured(folder, factor=2.1)
    assert failed == 1
    assert report["engines"][0]["problem"] == "relative error 5.0e-02, at most 1e-06"
    assert "FAILED: doubled fp32: relative error 5.0e-02 (at most 1e-06)" in capsys.readouterr().out
    failed, report = measured(folder, factor=float("nan"))
    assert (failed, report["engines"][0]["error"]) == (1, float("inf"))


@pytest.mark.parametrize(
    "error", [Internal("TensorRT cannot build it"), TypeError("factory function returned nullptr")]
)
def test_what_cannot_be_built_is_told_and_the_rest_goes_on(
    error: Exception, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(*_: Any) -> bytes:
        raise error

    failed, _ = measured(folder, build=build)
    assert failed == 1
    told = capsys.readouterr().out
    assert f"FAILED: doubled fp32: {'' if isinstance(error, Internal) else 'TypeError: '}{error}" in told
    assert told.endswith("1 not good\n")


def test_without_a_driver_it_touches_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", none)
    assert eight_six.main([str(folder)]) == 2
    assert capsys.readouterr().out == "no NVIDIA driver: libcuda.so.1 was not found\n"
    assert eight_six.main([str(folder / "none")]) == 2
    assert "has no networks.json: eight_six_prepare.py writes it" in capsys.readouterr().out


def test_it_needs_numpy_and_the_inference_half_alone() -> None:
    """TensorRT and pycuda are imported when the driver has answered."""
    found = set()
    for name in ("eight_six", "eight_six_build", "eight_six_cases"):
        tree = ast.parse((ROOT / "benchmarks" / "gpu" / f"{name}.py").read_text(), feature_version=(3, 10))
        for node in ast.walk(tree):
            found |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            found |= {str(node.module)} if isinstance(node, ast.ImportFrom) else set()
    ours = {name for name in found if name.startswith(("app", "benchmarks"))}
    assert all(name.startswith(("app.gpu", "benchmarks.gpu.eight_six")) for name in ours - {"app.errors"})
    assert {name.partition(".")[0] for name in found} - set(sys.stdlib_module_names) == {"app", "benchmarks", "numpy"}
