"""JSON with more values than a model can take is refused unparsed. The rest: test_json_numbers, test_wire."""

from __future__ import annotations

import pytest

from app.domain.records import Signature, Tensor
from app.errors import BadTensor
from app.serving import json_tensors


def test_too_many_values_are_refused_unparsed() -> None:
    fixed = Signature(inputs=(Tensor(name="x", shape=(-1, 10)), Tensor(name="s", shape=(), batch_axis=None)))
    json_tensors.refuse_many(b"," * 10_041, fixed, 4)
    with pytest.raises(BadTensor, match="about 10042 values, and 4 rows, which is max_batch, have 41"):
        json_tensors.refuse_many(b"," * 10_042, fixed, 4)
    json_tensors.refuse_many(b"," * 1_000_000, Signature(inputs=(Tensor(name="x", shape=(-1, -1)),)), 4)
