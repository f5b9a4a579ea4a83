"""bfloat16: the upper half of a float32. numpy has none, so that such tensors are held as float32 everywhere, and are
bits only where they enter or leave: in the Open Inference Protocol, and where an engine takes nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def widened(bits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """bits: uint16, of any shape. Returns the same numbers as float32."""
    wide: npt.NDArray[np.uint32] = bits.astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32)


def narrowed(array: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """array: float32, of any shape. Returns the bits of the nearest bfloat16, of two equally near the even one; NaN
    stays NaN, and what is too large becomes infinite."""
    wide = np.asarray(array, np.float32, order="C").reshape(-1).view(np.uint32)
    lowest = (wide >> np.uint32(16)) & np.uint32(1)
    bits = ((wide + np.uint32(0x7FFF) + lowest) >> np.uint32(16)).astype(np.uint16)
    if (nan := (wide & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)).any():
        bits[nan] = (wide[nan] >> np.uint32(16)).astype(np.uint16) | np.uint16(0x40)
    return bits.reshape(array.shape)
