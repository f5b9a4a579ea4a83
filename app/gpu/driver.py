"""What an NVIDIA driver and its GPU are, asked of libcuda and NVML themselves: no library of a framework is needed.

TensorRT without a driver segfaults on first use: ask here first. Imports nothing but the standard library.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """name: as NVIDIA calls it. capability: (major, minor). cuda: the newest CUDA that the driver knows, as in `13.0`.
    driver: its own version, as in `580.82.07`, where NVML tells. memory_bytes: of the whole device."""

    name: str
    capability: tuple[int, int]
    cuda: str
    driver: str | None
    memory_bytes: int


def missing() -> str | None:
    """Why no CUDA device can be used, in words; None when one can."""
    found = look()
    return found if isinstance(found, str) else None


def is_absent() -> bool:
    """Whether there is no NVIDIA driver at all; one that does not answer is there."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    return False


def gpu() -> Gpu | None:
    """The first device; None where there is none."""
    found = look()
    return found if isinstance(found, Gpu) else None


def look(ordinal: int = 0) -> Gpu | str:
    """The device of that number; or why there is none, in words."""
    try:
        cuda = _libcuda()
        if ordinal >= _count(cuda):
            return "no NVIDIA GPU: the driver answers and lists no device"
        device, total = _int(cuda, "cuDeviceGet", ordinal), ctypes.c_size_t(0)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        _call(cuda, "cuDeviceGetName", name, _NAME_BYTES, device)
        _call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(total), device)
        capability = tuple(
            _int(cuda, "cuDeviceGetAttribute", which, device) for which in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
        )
        version = _int(cuda, "cuDriverGetVersion")
    except _Silent as why:
        return str(why)
    return Gpu(
        name.value.decode(errors="replace"),
        (capability[0], capability[1]),
        f"{version // 1000}.{version % 1000 // 10}",
        _driver_version(),
        total.value,
    )


class _Silent(Exception):
    """The driver is not there, or does not answer."""


def _libcuda() -> ctypes.CDLL:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise _Silent("no NVIDIA driver: libcuda.so.1 was not found") from None
    _call(cuda, "cuInit", 0)
    return cuda


def _count(cuda: ctypes.CDLL) -> int:
    return _int(cuda, "cuDeviceGetCount")


def _int(cuda: ctypes.CDLL, name: str, *arguments: Any) -> int:
    """A function that writes one int to where its first argument points."""
    found = ctypes.c_int(0)
    _call(cuda, name, ctypes.byref(found), *arguments)
    return found.value


def _call(cuda: ctypes.CDLL, name: str, *arguments: Any) -> None:
    try:
        function = getattr(cuda, name)
    except AttributeError:
        raise _Silent(f"libcuda.so.1 is no NVIDIA driver: it has no {name}") from None
    if code := function(*arguments):
        raise _Silent(f"the NVIDIA driver does not answer: {name} failed with CUDA error {code}")


def _driver_version() -> str | None:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(_NAME_BYTES)
        if nvml.nvmlInit_v2():
            return None
        try:
            return text.value.decode() if not nvml.nvmlSystemGetDriverVersion(text, _NAME_BYTES) else None
        finally:
            nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return None
