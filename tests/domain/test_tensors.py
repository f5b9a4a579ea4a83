"""The quick check of a signature takes exactly what the thorough one takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from app.domain.records import Signature, Tensor
from app.domain.tensors import check, checker
from app.errors import BadTensor

ONE = Signature(inputs=(Tensor(name="x", shape=(-1, 2)),), outputs=(Tensor(name="y", shape=(-1, 2)),))
TWO = Signature(inputs=(Tensor(name="x", shape=(-1, 2)), Tensor(name="n", dtype="int64", shape=(-1,))))
OPEN = Signature(inputs=(Tensor(name="x", shape=(-1, -1)),))
LONE = Signature(inputs=(Tensor(name="x", shape=(1, 2), batch_axis=None),))
BRAIN = Signature(inputs=(Tensor(name="x", dtype="bfloat16", shape=(-1, 2)),))
F, D, WHOLE = np.float32, np.float64, np.int64


@pytest.mark.parametrize("signature", [ONE, TWO, OPEN, LONE, BRAIN])
@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"x": np.zeros((1, 2), F)},
        {"x": np.zeros((5, 2), F)},
        {"x": np.zeros((5, 2), ">f4")},
        {"x": np.zeros((5, 2), D)},
        {"x": np.zeros((0, 2), F)},
        {"x": np.zeros((2,), F)},
        {"x": np.zeros((), F)},
        {"x": np.zeros((2, 3), F)},
        {"x": np.zeros((2, 2, 1), F)},
        {"y": np.zeros((5, 2), F)},
        {"x": np.zeros((3, 2), F), "n": np.zeros(3, WHOLE)},
        {"n": np.zeros(3, WHOLE), "x": np.zeros((3, 2), F)},
        {"x": np.zeros((3, 2), F), "n": np.zeros(4, WHOLE)},
        {"x": np.zeros((0, 2), F), "n": np.zeros(0, WHOLE)},
        {"x": np.zeros((0, 2), F), "n": np.zeros(3, WHOLE)},
        {"x": np.zeros((3, 2), F), "n": np.zeros(0, WHOLE)},
        {"x": np.zeros((3, 2), F), "m": np.zeros(3, WHOLE)},
    ],
)
def test_they_agree(signature: Signature, arrays: dict[str, Any]) -> None:
    try:
        wanted: int | str = check(signature, arrays)
    except BadTensor as error:
        wanted = error.detail
    try:
        found: int | str = checker(signature)(arrays)
    except BadTensor as error:
        found = error.detail
    assert found == wanted
