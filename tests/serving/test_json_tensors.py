"""The quick way from JSON to tensors says the same as the slow one, of everything, right or wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.records import Signature, Tensor
from app.errors import BadTensor
from app.serving import json_tensors

DTYPES = ["float32", "float64", "int8", "int32", "int64", "uint8", "uint64", "bool", "string", "float16"]
NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([0, 1, -1, 255, 256, -128, 2**24 + 1, 2**53 + 1, 1e39, 3.4028235677973366e38, 1e-50, 2.0, -0.0]),
)
OTHERS = st.sampled_from([True, False, None, "1", "", "abc", {}, {"a": 1}, [], [1], [[]]])


@st.composite
def bodies(draw: st.DrawFn) -> tuple[Tensor, Any]:
    shape = draw(st.lists(st.integers(0, 3), min_size=0, max_size=4))
    leaves = draw(st.sampled_from([NUMBERS, st.integers(0, 5), st.floats(-4, 4, width=32)]))

    def nested(axis: int) -> Any:
        return draw(leaves) if axis == len(shape) else [nested(axis + 1) for _ in range(shape[axis])]

    value = nested(0)
    for _ in range(draw(st.integers(0, 2))):  # damage: something else at some place
        at, above = value, None
        for _ in range(draw(st.integers(0, len(shape)))):
            if not isinstance(at, list) or not at:
                break
            above, index = at, draw(st.integers(0, len(at) - 1))
            at = at[index]
        if above is None:
            value = draw(st.one_of(st.just(value), OTHERS))
        else:
            above[index] = draw(st.one_of(OTHERS, NUMBERS))
    wanted = [draw(st.sampled_from([size, -1, size, -1, 2])) for size in shape]
    if draw(st.integers(0, 9)) == 0:
        wanted.append(1)
    return Tensor(name="x", dtype=draw(st.sampled_from(DTYPES)), shape=tuple(wanted)), value


@settings(max_examples=200, deadline=None)
@given(bodies(), st.booleans())
def test_both_ways_agree(made: tuple[Tensor, Any], named: bool) -> None:
    tensor, value = made
    signature = Signature(inputs=(tensor,))
    body = orjson.dumps({"inputs": {"x": value} if named else value})
    parsed = json_tensors.parse(body)
    told: list[Any] = []
    for plain in (json_tensors.is_plain(body, parsed), False):
        try:
            told.append(json_tensors.tensors(parsed["inputs"], signature, plain=plain)["x"])
        except BadTensor as error:
            told.append((error.detail, error.hint, error.code))
    quick, slow = told
    if isinstance(slow, tuple):
        assert quick == slow
    else:
        assert (quick.dtype, quick.shape) == (slow.dtype, slow.shape)
        assert quick.tobytes() == slow.tobytes() if not slow.dtype.hasobject else quick.tolist() == slow.tolist()


@pytest.mark.parametrize(
    ("body", "plain"),
    [
        (b'{"inputs": [[1, 2]]}', True),
        (b'{"inputs": {"pixel_values": [[1, 2]], "rate": 3}}', True),
        (b'{"inputs": [[1]], "outputs": ["logits", "error"], "top_k": 3}', True),
        (b'{"inputs": [[1, true]]}', False),
        (b'{"inputs": [[1, false]]}', False),
        (b'{"inputs": [[1, null]]}', False),
        (b'{"inputs": {"rate": [true]}}', False),
        (b'{"inputs": {"\\u0072ate": [true]}}', False),
        (b'{"inputs": true, "inputs": [1]}', False),
        (b'{"inputs": [1], "outputs": 3}', False),
        (b'{"inputs": [1], "outputs": [3]}', False),
    ],
)
def test_which_bodies_are_plain(body: bytes, plain: bool) -> None:
    assert json_tensors.is_plain(body, json_tensors.parse(body)) is plain


def test_the_quick_way_is_taken() -> None:
    tensor = Tensor(name="x", shape=(-1, 1, 2, 2))
    found = json_tensors.quick(tensor, [[[[1, 2.5], [3, 4]]]])
    assert found is not None
    np.testing.assert_array_equal(found, [[[[1, 2.5], [3, 4]]]])
    assert found.dtype == np.float32
    assert found.flags.writeable


def test_too_many_values_are_refused_unparsed() -> None:
    fixed = Signature(inputs=(Tensor(name="x", shape=(-1, 10)), Tensor(name="s", shape=(), batch_axis=None)))
    json_tensors.refuse_many(b"," * 10_041, fixed, 4)
    with pytest.raises(BadTensor, match="about 10042 values, and 4 rows, which is max_batch, have 41"):
        json_tensors.refuse_many(b"," * 10_042, fixed, 4)
    json_tensors.refuse_many(b"," * 1_000_000, Signature(inputs=(Tensor(name="x", shape=(-1, -1)),)), 4)
