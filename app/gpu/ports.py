"""What a plan takes and gives, and what a run of it took. numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from app.gpu.memory import Shape


@dataclass(frozen=True)
class Port:
    """One input or output of a plan. shape: -1 where it varies. on_host: its values are sizes, read by the host."""

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    on_host: bool


@dataclass(frozen=True)
class Times:
    """Milliseconds of one run on the GPU. graph: whether it was launched as a CUDA graph."""

    copy_in_ms: float
    compute_ms: float
    copy_out_ms: float
    graph: bool
