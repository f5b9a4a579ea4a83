"""What the driver is asked, against a libcuda that is none; and without one."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from app.gpu import driver


class Libcuda:
    """As libcuda answers: codes, and values written to where the first argument points."""

    def __init__(self, devices: int = 1, capability: tuple[int, int] = (9, 0), init: int = 0) -> None:
        self._devices, self._capability, self._init = devices, capability, init

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self._init

    def cuDeviceGetCount(self, out: Any) -> int:  # noqa: N802
        out._obj.value = self._devices
        return 0

    def cuDeviceGet(self, out: Any, ordinal: int) -> int:  # noqa: N802
        out._obj.value = ordinal
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: int) -> int:  # noqa: N802
        name.value = b"NVIDIA Test"
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, device: int) -> int:  # noqa: N802
        out._obj.value = 80 << 30
        return 0

    def cuDeviceGetAttribute(self, out: Any, which: int, device: int) -> int:  # noqa: N802
        out._obj.value = dict(zip((75, 76), self._capability, strict=True))[which]
        return 0

    def cuDriverGetVersion(self, out: Any) -> int:  # noqa: N802
        out._obj.value = 13020
        return 0


class Nvml:
    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlSystemGetDriverVersion(self, text: Any, size: int) -> int:  # noqa: N802
        text.value = b"580.82.07"
        return 0

    def nvmlShutdown(self) -> int:  # noqa: N802
        return 0


def with_libraries(monkeypatch: pytest.MonkeyPatch, **found: Any) -> None:
    """found: `cuda` and `nvml`, each what is opened, or left out where there is none."""

    def opened(name: str) -> Any:
        kind = "nvml" if "nvidia-ml" in name else "cuda"
        if kind not in found:
            raise OSError(f"{name}: cannot open shared object file")
        return found[kind]

    monkeypatch.setattr(ctypes, "CDLL", opened)


def test_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with_libraries(monkeypatch, cuda=Libcuda(), nvml=Nvml())
    assert driver.missing() is None
    assert driver.gpu() == driver.Gpu("NVIDIA Test", (9, 0), "13.2", "580.82.07", 80 << 30)
    assert driver.look(1) == "no NVIDIA GPU: the driver answers and lists no device"


def test_without_nvml_the_drivers_version_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with_libraries(monkeypatch, cuda=Libcuda())
    found = driver.gpu()
    assert found is not None
    assert found.driver is None


@pytest.mark.parametrize(
    ("libraries", "reason"),
    [
        ({}, "no NVIDIA driver: libcuda.so.1 was not found"),
        ({"cuda": Libcuda(init=999)}, "the NVIDIA driver does not answer: cuInit failed with CUDA error 999"),
        ({"cuda": Libcuda(devices=0)}, "no NVIDIA GPU: the driver answers and lists no device"),
        ({"cuda": object()}, "libcuda.so.1 is no NVIDIA driver: it has no cuInit"),
    ],
)
def test_why_there_is_none(libraries: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_libraries(monkeypatch, **libraries)
    assert driver.missing() == reason
    assert driver.gpu() is None
