"""Whether an NVIDIA driver with a GPU is there, asked of libcuda itself.

TensorRT without a driver segfaults on first use: ask here first.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util

from app.runtimes import Availability


def missing() -> str | None:
    """Why no CUDA device can be used, in words; None when one can."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver: libcuda.so.1 was not found"
    count = ctypes.c_int(0)
    try:
        if code := cuda.cuInit(0):
            return f"the NVIDIA driver does not answer: cuInit failed with CUDA error {code}"
        if code := cuda.cuDeviceGetCount(ctypes.byref(count)):
            return f"the NVIDIA driver does not answer: cuDeviceGetCount failed with CUDA error {code}"
    except AttributeError:
        return "libcuda.so.1 is no NVIDIA driver: it has no cuInit"
    return None if count.value > 0 else "no NVIDIA GPU: the driver answers and lists no device"


def availability(module: str, product: str, install: str) -> Availability:
    """What a TensorRT flavour says of itself: the driver first, then the Python package."""
    if reason := missing():
        return Availability(False, reason)
    if importlib.util.find_spec(module) is None:
        return Availability(False, f"{product} is not installed: {install}")
    try:
        version: str | None = importlib.metadata.version(module.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        version = None
    return Availability(False, f"{product} is installed, and this release cannot build with it yet", version=version)
