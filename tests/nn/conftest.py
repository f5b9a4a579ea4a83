"""Fixtures for networks and their training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from listening import Listener, made

from workers.nn.data import Data


@pytest.fixture
def listener(tmp_path: Path) -> Listener:
    return Listener(tmp_path / "scratch")


@pytest.fixture
def bands(tmp_path: Path) -> Data:
    """4×4 pictures of three classes: 97 train, 30 val, 40 test."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 167)
    x = rng.standard_normal((167, 1, 4, 4)).astype(np.float32)
    x[np.arange(167), 0, y] += 2
    return made(tmp_path / "bands", x, y.astype(np.int64), (97, 127))
