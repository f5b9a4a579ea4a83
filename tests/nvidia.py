"""What tests that are about a machine without a GPU skip by."""

from __future__ import annotations

import ctypes

import pytest


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


without_driver = pytest.mark.skipif(_has_driver(), reason="this machine has an NVIDIA driver")
