"""Which GPUs each of the two knows, and the words for what is missing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from app.errors import Unavailable
from app.gpu import driver
from app.gpu.driver import Gpu
from app.runtimes._trt import flavour
from app.runtimes._trt.flavour import RTX, TENSORRT, Flavour, precisions


@pytest.mark.parametrize(
    ("of", "version", "capability", "why"),
    [
        (TENSORRT, "11.4.0", (6, 1), "GPU is sm 6.1, TensorRT 11 needs 7.5"),
        (TENSORRT, "11.4.0", (7, 0), "GPU is sm 7.0, TensorRT 11 needs 7.5"),
        (TENSORRT, "10.4.0", (7, 0), None),
        (TENSORRT, "10.13.3", (7, 0), "GPU is sm 7.0, TensorRT 10 needs 7.5"),
        (TENSORRT, "8.6.0", (6, 1), None),
        (TENSORRT, "11.0.0", (9, 0), None),
        (TENSORRT, "11.0.0", (12, 0), None),
        (RTX, "1.7.1", (8, 9), None),
        (RTX, "1.7.1", (9, 0), "GPU is sm 9.0, TensorRT for RTX knows 7.5, 8.0, 8.6, 8.9, 12.0, 12.1 alone"),
    ],
)
def test_which_gpus_are_known(of: Flavour, version: str, capability: tuple[int, int], why: str | None) -> None:
    assert of.unfit(capability, version) == why


def test_turing_has_neither_tf32_nor_bf16() -> None:
    assert precisions((7, 5)) == ("fp32", "fp16", "int8")
    assert precisions((9, 0)) == ("fp32", "tf32", "fp16", "bf16", "int8")


def on(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], *installed: str) -> None:
    """A machine with a GPU and these modules."""
    monkeypatch.setattr(driver, "look", lambda ordinal=0: Gpu("NVIDIA Test", capability, "13.0", "580", 80 << 30))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in installed else None)
    monkeypatch.setattr(flavour, "_imported", lambda module: object())
    monkeypatch.setattr(flavour.importlib.metadata, "version", lambda name: "11.4.0")


def test_what_is_missing_is_said_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, (9, 0))
    assert TENSORRT.available().reason == "TensorRT is not installed: pip install enginesmith[gpu]"
    with pytest.raises(Unavailable, match="pip install enginesmith"):
        TENSORRT.library()
    on(monkeypatch, (9, 0), "tensorrt")
    assert TENSORRT.available().reason == "pycuda is not installed: pip install enginesmith[gpu]"
    on(monkeypatch, (6, 1), "tensorrt", "pycuda")
    assert TENSORRT.available().reason == "GPU is sm 6.1, TensorRT 11 needs 7.5"
    on(monkeypatch, (9, 0), "tensorrt", "pycuda")
    found = TENSORRT.available()
    assert found.ok
    assert (found.device, found.version) == ("NVIDIA Test", "11.4.0")
    assert found.precisions == ("fp32", "tf32", "fp16", "bf16", "int8")


def test_a_library_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """As bindings without their libraries do: an ImportError that names a file."""
    broken = Flavour("broken", "enginesmith_no_such_module", "Broken", "pip install it", ("broken",), True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(Unavailable, match="is installed and does not load: No module named"):
        broken.library()


def test_a_driver_that_is_too_old_for_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, (9, 0), "tensorrt", "pycuda")
    there = {"tensorrt": "11.4.0", "tensorrt-cu13": "11.4.0"}

    def version(name: str) -> str:
        if name not in there:
            raise flavour.importlib.metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(flavour.importlib.metadata, "version", version)
    monkeypatch.setattr(driver, "look", lambda: Gpu("NVIDIA Test", (9, 0), "12.8", "570.86", 80 << 30))
    assert TENSORRT.available().reason == (
        "TensorRT here is for CUDA 13, and the driver (570.86) knows 12.8: a newer driver, or the package for CUDA 12 "
        "(tensorrt-cu12)"
    )
    there.pop("tensorrt-cu13")
    there["tensorrt-cu12"] = "11.4.0"
    assert TENSORRT.available().ok


def test_what_is_installed_and_does_not_load_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, (9, 0), "tensorrt", "pycuda")
    broken: list[str] = []

    def imported(module: str) -> object:
        if module in broken:
            raise ImportError("libnvinfer.so.11: cannot open shared object file")
        return object()

    monkeypatch.setattr(flavour, "_imported", imported)
    assert TENSORRT.available().ok
    for module, product in (("tensorrt", "TensorRT"), ("pycuda.driver", "pycuda")):
        broken[:] = [module]
        assert TENSORRT.available().reason == (
            f"{product} is installed and does not load: libnvinfer.so.11: cannot open shared object file"
        )


@pytest.mark.parametrize(
    ("before", "there"),
    [
        pytest.param("sys.modules['tensorrt'] = types.ModuleType('tensorrt')", True, id="a module without a spec"),
        pytest.param("sys.modules['tensorrt'] = None", False, id="none"),
        pytest.param("sys.meta_path.insert(0, Refusing())", False, id="a finder that refuses"),
    ],
)
def test_odd_imports_are_no_trap(before: str, there: bool) -> None:
    """In a process of its own: what others do to the import system is done there."""
    code = f"""
import sys, types
class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name == "tensorrt":
            raise ModuleNotFoundError(name)
{before}
from app.runtimes import get
from app.runtimes._trt.flavour import TENSORRT
get("tensorrt").available()
print(TENSORRT.is_installed)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(there), done.stderr


def test_the_cuda_that_the_packages_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavour, "_is_installed", lambda package: package in ("tensorrt", "tensorrt-cu12"))
    assert TENSORRT.toolkit == "12"
    monkeypatch.setattr(flavour, "_is_installed", lambda package: package == "tensorrt")
    assert TENSORRT.toolkit is None
