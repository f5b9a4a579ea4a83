"""bfloat16 and back, against a library that knows it."""

from __future__ import annotations

import numpy as np
import pytest

from app.domain.bfloat16 import narrowed, widened

ml_dtypes = pytest.importorskip("ml_dtypes")  # comes with onnx


def test_every_bfloat16_comes_back() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = widened(bits)
    np.testing.assert_array_equal(wide, bits.view(ml_dtypes.bfloat16).astype(np.float32))
    number = ~np.isnan(wide)
    np.testing.assert_array_equal(narrowed(wide)[number], bits[number])
    assert np.isnan(widened(narrowed(wide)[~number])).all()


def test_what_lies_between_is_rounded() -> None:
    rng = np.random.default_rng(0)
    anything = rng.integers(0, 1 << 32, 100_000, dtype=np.uint32).view(np.float32)
    edges = np.array([1.00390625, 1.01171875, 3.4e38, -3.4e38, 1e-45, -0.0, np.inf], np.float32)
    for values in (anything[~np.isnan(anything)], edges):
        np.testing.assert_array_equal(narrowed(values), values.astype(ml_dtypes.bfloat16).view(np.uint16))


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_shapes_and_strides(shape: tuple[int, ...]) -> None:
    assert narrowed(np.ones(shape, np.float32)).shape == widened(np.ones(shape, np.uint16)).shape == shape
    columns = np.arange(6, dtype=np.float32).reshape(2, 3).T
    np.testing.assert_array_equal(widened(narrowed(columns)), columns)
